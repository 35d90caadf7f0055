"""Book-keeping of the KV pool: free blocks, reference counts, and the prefix index (block hash -> block).

It knows block ids, not contents. Block 0 is the null block: in a block table it stands for a block that left the
sliding window. The null block is neither held nor free.

    state of a block    references    in the free list    in the prefix index
    held                >= 1          no                  maybe (once it is full and computed)
    cached              0             yes, at the end     yes
    free                0             yes, in front       no

Allocation takes blocks from the front. So cached blocks are overwritten only when no free block is left, the least
recently used first.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from engine.scheduling.block_hash import BlockHash

NULL_BLOCK = 0


@dataclass(frozen=True, slots=True)
class _CachedBlock:
    """One entry of the prefix index."""

    block_id: int
    token_ids: tuple[int, ...]  # compared on a hit: a hash alone is never trusted


class BlockPool:
    """Owner of the ids 1..num_blocks. Raises AssertionError if a caller breaks the rules, as by a double free."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * (num_blocks + 1)
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks + 1))
        self._index: dict[BlockHash, _CachedBlock] = {}
        self._hashes: dict[int, BlockHash] = {}  # by block id; the blocks in the prefix index
        self.num_cached = 0  # blocks in the prefix index that no request holds

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now; cached blocks are included."""
        return len(self._free)

    @property
    def num_held(self) -> int:
        return self.num_blocks - len(self._free)

    def is_held(self, block_id: int) -> bool:
        return self._references[block_id] > 0

    def can_allocate(self, count: int) -> bool:
        return count <= len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Return `count` blocks with one reference each and drop their prefix index entries. Needs can_allocate()."""
        assert count <= len(self._free), "allocate() without can_allocate()"
        return [self._take_oldest() for _ in range(count)]

    def _take_oldest(self) -> int:
        block_id, _ = self._free.popitem(last=False)
        block_hash = self._hashes.pop(block_id, None)
        if block_hash is not None:
            del self._index[block_hash]
            self.num_cached -= 1
        self._references[block_id] = 1
        return block_id

    def incref(self, block_id: int) -> None:
        """Add a reference to a block that lookup() returned."""
        if not self._references[block_id]:
            del self._free[block_id]
            self.num_cached -= 1
        self._references[block_id] += 1

    def decref(self, block_ids: Iterable[int]) -> None:
        """Drop one reference of each block; skip null blocks.

        Pass a sequence's last block first: then the ends of prefixes are reused before their beginnings.
        """
        for block_id in block_ids:
            if block_id == NULL_BLOCK:
                continue
            assert self._references[block_id] > 0, f"block {block_id} is freed twice"
            self._references[block_id] -= 1
            if not self._references[block_id]:
                self._free[block_id] = None
                if block_id in self._hashes:
                    self.num_cached += 1
                else:
                    self._free.move_to_end(block_id, last=False)

    def cache_block(self, block_id: int, block_hash: BlockHash, token_ids: tuple[int, ...]) -> None:
        """Add a held, full and computed block to the prefix index. The first block of a hash stays in the index."""
        assert self._references[block_id] > 0, "only a held block can be cached"
        if block_hash not in self._index and block_id not in self._hashes:
            self._index[block_hash] = _CachedBlock(block_id, token_ids)
            self._hashes[block_id] = block_hash

    def lookup(self, block_hash: BlockHash, token_ids: tuple[int, ...]) -> int | None:
        """Return the block with this hash and these tokens, or None."""
        cached = self._index.get(block_hash)
        return cached.block_id if cached is not None and cached.token_ids == token_ids else None

    def uncache(self, block_hashes: Iterable[BlockHash]) -> None:
        """Remove the blocks with these hashes from the prefix index, because their contents cannot be trusted."""
        for block_hash in block_hashes:
            cached = self._index.pop(block_hash, None)
            if cached is not None:
                del self._hashes[cached.block_id]
                if not self._references[cached.block_id]:
                    self.num_cached -= 1
                    self._free.move_to_end(cached.block_id, last=False)

    def check_integrity(self, block_tables: Iterable[list[int]]) -> None:
        """Raise AssertionError unless the given block tables explain every reference and no block leaks.

        `block_tables`: those of all sequences that hold blocks.
        """
        expected = Counter(block_id for table in block_tables for block_id in table if block_id != NULL_BLOCK)
        held = {block_id: count for block_id, count in enumerate(self._references) if count}
        wrong = {
            i: (held.get(i, 0), expected[i]) for i in held.keys() | expected.keys() if held.get(i, 0) != expected[i]
        }
        assert not wrong, f"references of blocks, and how many block tables have: {wrong}"
        free = set(range(1, self.num_blocks + 1)).difference(held)
        assert self._free.keys() == free, f"free, or held, and listed as the other: {self._free.keys() ^ free}"
        assert {cached.block_id for cached in self._index.values()} == set(self._hashes), (
            "the prefix index is inconsistent"
        )
        assert self.num_cached == sum(1 for block_id in self._hashes if block_id in self._free), "num_cached is wrong"
