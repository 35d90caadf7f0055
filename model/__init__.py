"""The Mixtral network, its weights and its KV cache. Independent of requests, time and asyncio."""
