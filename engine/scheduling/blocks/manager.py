"""Block tables of the sequences: allocation, prefix hits, eviction behind the sliding window, blocks to be zeroed."""

from collections.abc import Sequence as SequenceOf

from engine.scheduling.blocks.geometry import BlockGeometry, ceil_div
from engine.scheduling.blocks.pool import NULL_BLOCK, BlockPool
from engine.scheduling.sequence import Sequence


class BlockManager:
    """Owner of the pool; mutates the block tables of the sequences passed to it."""

    def __init__(self, pool: BlockPool, geometry: BlockGeometry, *, prefix_caching: bool) -> None:
        self.pool = pool
        self.geometry = geometry
        self.prefix_caching = prefix_caching
        self.num_window_blocks_freed = 0
        self._block_size = geometry.block_size
        self._suspect: set[int] = set()  # blocks of failed requests that other requests may still hold
        self._blocks_to_zero: list[int] = []

    def can_admit(self, sequence: Sequence, hits: SequenceOf[int]) -> bool:
        """Return whether all present tokens can be computed without taking a block from another sequence."""
        free_hits = sum(1 for block_id in hits if block_id != NULL_BLOCK and not self.pool.is_held(block_id))
        num_hits = sum(1 for block_id in hits if block_id != NULL_BLOCK)
        peak = min(self.geometry.peak_blocks(sequence.num_tokens), self.pool.num_blocks)
        return self.pool.can_allocate(max(0, peak - num_hits) + free_hits)

    def find_prefix(self, sequence: Sequence) -> list[int]:
        """Return the block table of the longest cached prefix, at least one token shorter than the sequence.

        Under a window, blocks that no later position can see may be missing: they appear as null blocks. With W = 32
        and blocks of 16, a hit of 6 blocks (96 tokens) needs blocks 4 and 5: position 96 sees positions 65 to 96.
        """
        if not self.prefix_caching or not sequence.reads_prefix_cache:
            return []
        max_blocks = (sequence.num_tokens - 1) // self._block_size
        found: list[int] = []
        for index in range(max_blocks):
            found.append(self._lookup(sequence, index))
            if found[-1] == NULL_BLOCK and self.geometry.window is None:
                return found[:-1]
        return self._longest_visible(found)

    def _lookup(self, sequence: Sequence, index: int) -> int:
        tokens = sequence.block_tokens(index, self._block_size)
        return self.pool.lookup(sequence.block_hash(index, self._block_size), tokens) or NULL_BLOCK

    def _longest_visible(self, found: list[int]) -> list[int]:
        """Return the longest prefix of `found` whose blocks are there, as far as a position behind it sees them."""
        runs: list[int] = []  # by block: how many in a row are there, up to this one
        for block_id in found:
            runs.append(0 if block_id == NULL_BLOCK else 1 + (runs[-1] if runs else 0))
        for count in range(len(found), 0, -1):
            first = self.geometry.first_visible_block(count * self._block_size)
            if runs[count - 1] >= count - first:
                return [NULL_BLOCK] * first + found[first:count]
        return []

    def attach_prefix(self, sequence: Sequence, hits: list[int]) -> None:
        """Start the sequence behind the prefix that find_prefix() returned."""
        for block_id in hits:
            if block_id != NULL_BLOCK:
                self.pool.incref(block_id)
        sequence.block_table = list(hits)
        sequence.num_evicted_blocks = next((i for i, block_id in enumerate(hits) if block_id != NULL_BLOCK), 0)
        sequence.num_cached_blocks = len(hits)
        sequence.num_computed = sequence.num_scheduled = len(hits) * self._block_size

    def has_room(self, sequence: Sequence) -> bool:
        """Return whether the next position has a block."""
        return sequence.num_scheduled < len(sequence.block_table) * self._block_size

    def allocate_for(self, sequence: Sequence, num_positions: int) -> int:
        """Allocate blocks for the next `num_positions`, or for as many of them as there are free blocks.

        Return the number of positions that have blocks now.
        """
        start, size = sequence.num_scheduled, self._block_size
        available = len(sequence.block_table) * size - start
        if available >= num_positions:
            return num_positions
        missing = min(ceil_div(num_positions - available, size), self.pool.num_free)
        if missing:
            sequence.block_table += self.pool.allocate(missing)
            available += missing * size
        return min(num_positions, available)

    def allocate_draft(self, sequence: Sequence, num_drafted: int, num_kept_free: int) -> int:
        """Allocate blocks for a draft behind the next position, but leave `num_kept_free` blocks free. They stay the
        sequence's when the draft is wrong: it needs them next.

        Return the number of drafted positions that have blocks now.
        """
        size = self._block_size
        available = len(sequence.block_table) * size - sequence.num_scheduled - 1
        missing = min(ceil_div(max(0, num_drafted - available), size), max(0, self.pool.num_free - num_kept_free))
        if missing:
            sequence.block_table += self.pool.allocate(missing)
        return min(num_drafted, available + missing * size)

    def commit(self, sequence: Sequence) -> None:
        """Cache full blocks and free blocks that left the window. Call it after positions were computed."""
        if self.prefix_caching and sequence.num_computed // self._block_size > sequence.num_cached_blocks:
            self._cache_full_blocks(sequence)
        if self.geometry.window is not None:
            self._evict_outside_window(sequence)

    def _cache_full_blocks(self, sequence: Sequence) -> None:
        for index in range(sequence.num_cached_blocks, sequence.num_computed // self._block_size):
            tokens = sequence.block_tokens(index, self._block_size)
            self.pool.cache_block(sequence.block_table[index], sequence.block_hash(index, self._block_size), tokens)
            sequence.num_cached_blocks = index + 1

    def _evict_outside_window(self, sequence: Sequence) -> None:
        """Free the blocks that no later position sees; the next position is num_computed."""
        first, evicted = self.geometry.first_visible_block(sequence.num_computed), sequence.num_evicted_blocks
        if first > evicted:
            self._decref(sequence.block_table[evicted:first])
            sequence.block_table[evicted:first] = [NULL_BLOCK] * (first - evicted)
            sequence.num_evicted_blocks = first
            self.num_window_blocks_freed += first - evicted

    def invalidate(self, sequence: Sequence) -> None:
        """Remove the sequence's blocks, its prefix hits included, from the prefix cache.

        Call it before free(): it also marks the blocks to be filled with zeros before their next use.
        """
        self._suspect.update(block for block in sequence.block_table if block != NULL_BLOCK)
        cached = range(sequence.num_cached_blocks)
        self.pool.uncache(sequence.block_hash(index, self._block_size) for index in cached)

    def free(self, sequence: Sequence) -> None:
        """Free all blocks of the sequence, the last first."""
        self._decref(sequence.block_table[::-1])
        sequence.block_table = []

    def _decref(self, block_ids: list[int]) -> None:
        """Drop one reference of each block. A suspect block is zeroed once its last holder has freed it."""
        self.pool.decref(block_ids)
        if self._suspect:
            freed = {block for block in self._suspect.intersection(block_ids) if not self.pool.is_held(block)}
            self._suspect -= freed
            self._blocks_to_zero += sorted(freed)

    def take_blocks_to_zero(self) -> tuple[int, ...]:
        """Return the blocks that the next step must fill with zeros before it computes anything.

        Masked attention multiplies unwritten positions by zero, and 0 * NaN is NaN: a NaN in such a block would
        spread to its next holder.
        """
        blocks, self._blocks_to_zero = self._blocks_to_zero, []
        return tuple(blocks)
