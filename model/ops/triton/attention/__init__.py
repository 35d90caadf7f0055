"""Attention over the paged KV cache: the plan of a step's launches, the kernels, and the tile that they share."""
