"""Requests, token ids, KV blocks and step plans. Never sees text or HTTP."""
