"""Arithmetic of KV blocks: how many a sequence needs, and which of them a position can see. No state, no pool.

Allocation (BlockManager) and sizing (engine/capacity) both use it, so that the blocks promised at start are the blocks
allocated later.
"""

from dataclasses import dataclass


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True, slots=True)
class BlockGeometry:
    """Block size, attention window and chunk size of one engine, in tokens."""

    block_size: int
    window: int | None  # None: every position sees all positions before it
    max_chunk: int  # positions of one sequence that one step computes at most

    def peak_blocks(self, num_tokens: int) -> int:
        """Return how many blocks a sequence of `num_tokens` holds at its peak.

        Under a window of W: the blocks that W positions can touch, ceil(W / block) + 1, and those of the chunk in
        progress. With W = 256, blocks of 16 and chunks of 512 a sequence of 2,000 tokens holds at most 17 + 32.
        """
        full = ceil_div(num_tokens, self.block_size)
        if self.window is None:
            return full
        return min(full, self._window_blocks(self.window) + ceil_div(self.max_chunk, self.block_size))

    def decoding_blocks(self, num_tokens: int) -> int:
        """Return how many blocks a sequence of `num_tokens` holds while it takes one token per step."""
        full = ceil_div(num_tokens, self.block_size)
        return full if self.window is None else min(full, self._window_blocks(self.window))

    def _window_blocks(self, window: int) -> int:
        return ceil_div(window, self.block_size) + 1

    def max_servable_tokens(self, num_blocks: int) -> int | None:
        """Return the longest sequence, in computed positions, that fits alone into `num_blocks`; None: any length.

        A window bounds the blocks held, once the pool can hold one window and a chunk of one token.
        """
        if self.window is not None and num_blocks >= self._window_blocks(self.window):
            return None
        return num_blocks * self.block_size

    def first_visible_block(self, position: int) -> int:
        """Return the index of the block of the first position that `position` sees.

        With W = 32 and blocks of 16, position 96 sees positions 65 to 96, so the answer is block 4.
        """
        return 0 if self.window is None else max(0, position - self.window + 1) // self.block_size
