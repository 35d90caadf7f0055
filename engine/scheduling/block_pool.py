"""The KV pool's book-keeping: which blocks are free, who holds how many references, which contents can be found again.

It knows ids, never contents. Block 0 is the null block: it stands in a block table where a window has slid out, and is
neither held nor free.

    state of a block    references    in the free list    in the prefix index
    held                >= 1          no                  maybe (from when it was full and computed)
    cached              0             yes, at the end     yes
    free                0             yes, in front       no

Allocation takes from the front, so a cached block is forgotten only when no other is left, the longest unused first.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from engine.scheduling.block_hash import BlockHash

NULL_BLOCK = 0


@dataclass(frozen=True, slots=True)
class _Cached:
    """What the prefix index knows of one block."""

    block_id: int
    token_ids: tuple[int, ...]  # compared on a hit: a key alone is never trusted


class BlockPool:
    """Owns the ids 1..num_blocks. Raises AssertionError where a caller breaks the rules (a double free)."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * (num_blocks + 1)
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks + 1))
        self._index: dict[BlockHash, _Cached] = {}
        self._key_of: dict[int, BlockHash] = {}
        self.num_cached = 0  # blocks no request holds whose contents can still be found

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, the cached ones among them."""
        return len(self._free)

    @property
    def num_held(self) -> int:
        return self.num_blocks - len(self._free)

    def is_held(self, block_id: int) -> bool:
        return self._references[block_id] > 0

    def can_allocate(self, count: int) -> bool:
        return count <= len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each; what they cached is forgotten. Needs can_allocate(count)."""
        assert count <= len(self._free), "allocate() without can_allocate()"
        return [self._take_oldest() for _ in range(count)]

    def _take_oldest(self) -> int:
        block_id, _ = self._free.popitem(last=False)
        key = self._key_of.pop(block_id, None)
        if key is not None:
            del self._index[key]
            self.num_cached -= 1
        self._references[block_id] = 1
        return block_id

    def incref(self, block_id: int) -> None:
        """One more reference to a block found by lookup()."""
        if not self._references[block_id]:
            del self._free[block_id]
            self.num_cached -= 1
        self._references[block_id] += 1

    def decref(self, block_ids: Iterable[int]) -> None:
        """Gives one reference of each back; null blocks are passed over. Pass a sequence's last block first: then the
        ends of prefixes are reused before their beginnings."""
        for block_id in block_ids:
            if block_id == NULL_BLOCK:
                continue
            assert self._references[block_id] > 0, f"block {block_id} is freed twice"
            self._references[block_id] -= 1
            if not self._references[block_id]:
                self._free[block_id] = None
                if block_id in self._key_of:
                    self.num_cached += 1
                else:
                    self._free.move_to_end(block_id, last=False)

    def cache_block(self, block_id: int, key: BlockHash, token_ids: tuple[int, ...]) -> None:
        """Makes a held, full and computed block findable. The first block published under a key stays."""
        assert self._references[block_id] > 0, "only a held block can be published"
        if key not in self._index and block_id not in self._key_of:
            self._index[key] = _Cached(block_id, token_ids)
            self._key_of[block_id] = key

    def lookup(self, key: BlockHash, token_ids: tuple[int, ...]) -> int | None:
        """The block that holds these tokens after the prefix that `key` names, or None."""
        cached = self._index.get(key)
        return cached.block_id if cached is not None and cached.token_ids == token_ids else None

    def uncache(self, keys: Iterable[BlockHash]) -> None:
        """Makes the blocks published under these keys unfindable: what they hold is not to be trusted."""
        for key in keys:
            cached = self._index.pop(key, None)
            if cached is not None:
                del self._key_of[cached.block_id]
                if not self._references[cached.block_id]:
                    self.num_cached -= 1
                    self._free.move_to_end(cached.block_id, last=False)

    def check_integrity(self, block_tables: Iterable[list[int]]) -> None:
        """Raises AssertionError unless the tables of all live sequences explain every reference and nothing leaks."""
        expected = Counter(block_id for table in block_tables for block_id in table if block_id != NULL_BLOCK)
        for block_id in range(1, self.num_blocks + 1):
            references = self._references[block_id]
            assert references == expected[block_id], (
                f"block {block_id}: {references} references, {expected[block_id]} in tables"
            )
            assert (block_id in self._free) == (references == 0), (
                f"block {block_id} with {references} references, free list differs"
            )
        assert self._references[NULL_BLOCK] == 0 and NULL_BLOCK not in self._free, "the null block is in use"
        assert {cached.block_id for cached in self._index.values()} == set(self._key_of), "the prefix index is torn"
        assert self.num_cached == sum(1 for block_id in self._key_of if block_id in self._free), "num_cached is wrong"
