"""Gives sequences the blocks they need and takes back those they no longer do: growth, prefix hits, the sliding window.

The arithmetic of what fits lives here and nowhere else, so that admission promises what allocation keeps.
"""

from collections.abc import Sequence as SequenceOf

from engine.scheduling.block_pool import NULL_BLOCK, BlockPool
from engine.scheduling.sequence import Sequence


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class BlockManager:
    """Owns the pool; mutates the block tables of the sequences it is given."""

    def __init__(
        self, pool: BlockPool, block_size: int, window: int | None, max_chunk: int, prefix_caching: bool
    ) -> None:
        self.pool = pool
        self.block_size = block_size
        self.window = window
        self.max_chunk = max_chunk
        self.prefix_caching = prefix_caching
        self.num_window_blocks_freed = 0
        self._suspect: set[int] = set()  # blocks that failed requests shared with others, who still hold them
        self._to_scrub: list[int] = []

    def peak_blocks(self, num_tokens: int) -> int:
        """Blocks that a sequence of `num_tokens` holds at most at once.

        Under a window of W: those that W positions can touch, ceil(W / block) + 1, and those of the chunk in progress.
        With W = 256, blocks of 16 and chunks of 512 a sequence of 2,000 tokens holds at most 17 + 32.
        """
        whole = ceil_div(num_tokens, self.block_size)
        if self.window is None:
            return whole
        return min(whole, self._window_blocks(self.window) + ceil_div(self.max_chunk, self.block_size))

    def decoding_blocks(self, num_tokens: int) -> int:
        """Blocks that a sequence of `num_tokens` holds while it takes one token per step."""
        whole = ceil_div(num_tokens, self.block_size)
        return whole if self.window is None else min(whole, self._window_blocks(self.window))

    def _window_blocks(self, window: int) -> int:
        return ceil_div(window, self.block_size) + 1

    def max_servable_tokens(self) -> int | None:
        """The longest sequence that fits when it is alone, in computed positions; None: any length.

        A window bounds what is held, once the pool can hold one window and a chunk of one token.
        """
        if self.window is not None and self.pool.num_blocks >= self._window_blocks(self.window):
            return None
        return self.pool.num_blocks * self.block_size

    def can_admit(self, sequence: Sequence, hits: SequenceOf[int]) -> bool:
        """Whether all its present tokens can be computed without taking a block from anyone."""
        free_hits = sum(1 for block_id in hits if block_id != NULL_BLOCK and not self.pool.is_held(block_id))
        held = sum(1 for block_id in hits if block_id != NULL_BLOCK)
        peak = min(self.peak_blocks(sequence.num_tokens), self.pool.num_blocks)
        return self.pool.can_allocate(max(0, peak - held) + free_hits)

    def find_prefix(self, sequence: Sequence) -> list[int]:
        """The block table of the longest cached prefix, at least one token short of the sequence.

        Under a window the blocks that no later position can see need not be there: they appear as null blocks. With
        W = 32 and blocks of 16, a hit of 6 blocks (96 tokens) needs blocks 4 and 5: position 96 sees 65..96.
        """
        if not self.prefix_caching or not sequence.reads_prefix_cache:
            return []
        most = (sequence.num_tokens - 1) // self.block_size
        found = [self._lookup(sequence, index) for index in self._indices_to_look_up(sequence, most)]
        return self._longest_visible(found)

    def _indices_to_look_up(self, sequence: Sequence, most: int) -> range:
        if self.window is not None:
            return range(most)
        for index in range(most):
            if self._lookup(sequence, index) == NULL_BLOCK:
                return range(index)
        return range(most)

    def _lookup(self, sequence: Sequence, index: int) -> int:
        tokens = sequence.block_tokens(index, self.block_size)
        return self.pool.lookup(sequence.block_key(index, self.block_size), tokens) or NULL_BLOCK

    def _longest_visible(self, found: list[int]) -> list[int]:
        for count in range(len(found), 0, -1):
            first = self._first_visible_block(count * self.block_size)
            if all(found[first:count]):
                return [NULL_BLOCK] * first + found[first:count]
        return []

    def _first_visible_block(self, position: int) -> int:
        """The block of the first position that `position` sees: with W = 32 position 96 sees from 65, in block 4."""
        return 0 if self.window is None else max(0, position - self.window + 1) // self.block_size

    def attach_prefix(self, sequence: Sequence, hits: list[int]) -> None:
        """Starts the sequence behind a prefix that find_prefix() returned."""
        for block_id in hits:
            if block_id != NULL_BLOCK:
                self.pool.incref(block_id)
        sequence.block_table = list(hits)
        sequence.num_evicted_blocks = next((i for i, block_id in enumerate(hits) if block_id != NULL_BLOCK), 0)
        sequence.num_published_blocks = len(hits)
        sequence.num_computed = sequence.num_scheduled = len(hits) * self.block_size

    def allocate_for(self, sequence: Sequence, wanted: int) -> int:
        """Blocks for the next `wanted` positions, or for as many of them as the free blocks allow; returns how many."""
        start, size = sequence.num_scheduled, self.block_size
        room = len(sequence.block_table) * size - start
        if room < wanted:
            missing = min(ceil_div(wanted - room, size), self.pool.num_free)
            if missing:
                sequence.block_table += self.pool.allocate(missing)
                room += missing * size
        return min(wanted, room)

    def commit(self, sequence: Sequence) -> None:
        """After positions were computed: full blocks become findable, what slid out of the window is given back."""
        if self.prefix_caching and sequence.num_computed // self.block_size > sequence.num_published_blocks:
            self._publish_full_blocks(sequence)
        if self.window is not None:
            self._slide(sequence)

    def _publish_full_blocks(self, sequence: Sequence) -> None:
        for index in range(sequence.num_published_blocks, sequence.num_computed // self.block_size):
            tokens = sequence.block_tokens(index, self.block_size)
            self.pool.cache_block(sequence.block_table[index], sequence.block_key(index, self.block_size), tokens)
            sequence.num_published_blocks = index + 1

    def _slide(self, sequence: Sequence) -> None:
        """The next position to compute is num_computed; what it cannot see, no later one can."""
        first, slid = self._first_visible_block(sequence.num_computed), sequence.num_evicted_blocks
        if first > slid:
            self._release(sequence.block_table[slid:first])
            sequence.block_table[slid:first] = [NULL_BLOCK] * (first - slid)
            sequence.num_evicted_blocks = first
            self.num_window_blocks_freed += first - slid

    def invalidate(self, sequence: Sequence) -> None:
        """No later request finds what this sequence computed, nor what it took for a prefix. Call it before the blocks
        are released: they are scrubbed before their next use."""
        self._suspect.update(block for block in sequence.block_table if block != NULL_BLOCK)
        published = range(sequence.num_published_blocks)
        self.pool.uncache(sequence.block_key(index, self.block_size) for index in published)

    def free(self, sequence: Sequence) -> None:
        """Takes every block back, the last first."""
        self._release(sequence.block_table[::-1])
        sequence.block_table = []

    def _release(self, block_ids: list[int]) -> None:
        """What a failed request has held is scrubbed once the last holder lets go."""
        self.pool.decref(block_ids)
        if self._suspect:
            freed = {block for block in self._suspect.intersection(block_ids) if not self.pool.is_held(block)}
            self._suspect -= freed
            self._to_scrub += sorted(freed)

    def take_blocks_to_zero(self) -> tuple[int, ...]:
        """The blocks that the next step has to fill with zeros before it computes anything: a NaN times nothing is
        still a NaN, should anyone ever read a position that he has not written."""
        blocks, self._to_scrub = self._to_scrub, []
        return tuple(blocks)
