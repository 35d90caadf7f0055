"""Tensors: the Mixtral network, its weights and its K/V storage. Knows nothing of requests, time or asyncio."""
