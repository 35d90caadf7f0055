"""KV blocks: their number for a request, the pool of free and cached ones, the block tables of sequences."""
