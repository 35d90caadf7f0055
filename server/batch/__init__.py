"""Batches of requests in OpenAI's format: read, sent to a server, and answered once each, also across kills."""
