"""The Mixtral network, its weights and its KV cache. Knows nothing of requests, time or asyncio."""
