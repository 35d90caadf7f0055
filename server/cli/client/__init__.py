"""Requests to a running server, their errors and streamed answers, which several commands share."""
