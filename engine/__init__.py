"""Requests, token ids, KV blocks and step plans. Never sees text or HTTP; only batch, sampler and runner import torch."""
