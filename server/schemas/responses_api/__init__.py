"""Requests of OpenAI's Responses API."""
