"""Rules of the block pool: no block is lost or freed twice, and the oldest cached block is reused first."""

import pytest

from engine.scheduling.block_hash import child_hash, root_hash
from engine.scheduling.blocks.pool import BlockPool

HASHES = [child_hash(root_hash(""), [n]) for n in range(10)]


def test_a_block_is_never_freed_twice() -> None:
    pool = BlockPool(2)
    [block] = pool.allocate(1)
    pool.decref([block])
    with pytest.raises(AssertionError, match="freed twice"):
        pool.decref([block])


def test_the_null_block_is_never_allocated() -> None:
    pool = BlockPool(3)
    assert sorted(pool.allocate(3)) == [1, 2, 3]
    assert not pool.can_allocate(1)
    pool.decref([0, 0])  # ignored
    assert pool.num_free == 0


def test_a_shared_block_is_free_when_its_last_reference_is_dropped() -> None:
    pool = BlockPool(2)
    [block] = pool.allocate(1)
    pool.incref(block)
    pool.decref([block])
    assert pool.num_held == 1
    pool.decref([block])
    assert pool.num_held == 0


def test_cached_blocks_are_reused_last_and_the_least_recently_used_first() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(4)
    for block, block_hash in zip(blocks[:3], HASHES, strict=False):
        pool.cache_block(block, block_hash, (block,))
    pool.decref([blocks[1]])
    pool.decref([blocks[0]])
    pool.decref([blocks[3]])  # not cached: reused first
    pool.decref([blocks[2]])
    assert [pool.allocate(1)[0] for _ in range(4)] == [blocks[3], blocks[1], blocks[0], blocks[2]]
    assert pool.num_cached == 0


def test_a_reused_block_is_no_longer_found() -> None:
    pool = BlockPool(1)
    [block] = pool.allocate(1)
    pool.cache_block(block, HASHES[0], (7,))
    pool.decref([block])
    assert pool.lookup(HASHES[0], (7,)) == block
    pool.allocate(1)
    assert pool.lookup(HASHES[0], (7,)) is None


def test_an_equal_hash_with_other_tokens_is_no_hit() -> None:
    pool = BlockPool(1)
    [block] = pool.allocate(1)
    pool.cache_block(block, HASHES[0], (7,))
    assert pool.lookup(HASHES[0], (8,)) is None


def test_a_lost_block_is_noticed() -> None:
    pool = BlockPool(3)
    table = pool.allocate(2)
    pool.check_integrity([table])
    with pytest.raises(AssertionError, match="references"):
        pool.check_integrity([table[:1]])
