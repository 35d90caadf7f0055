"""Experts of a mapped pack that is larger than memory: read into the page cache, and dropped from it."""

import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.capacity.machine.page_cache import cached_bytes
from model.checkpoint.pack.header import WEIGHTS_NAME, read_header
from model.kv_pool import KvPool
from model.ops.native.expert_store import ExpertReadError, ReadFunction
from tests.support.conditions import wait_until
from tests.support.kernels.native_cases import LIBRARY
from tests.support.kernels.paged import CPU
from tests.support.kernels.stored_experts import (
    BLOCK_SIZE,
    EVERY_BATCH,
    WIDE,
    Pack,
    assert_equal,
    batches,
    logits_of,
    routed,
    store_of,
)


@pytest.mark.parametrize("num_slots", [2, 3, 10])
def test_experts_in_the_page_cache_give_the_bits(num_slots: int, pack: Pack) -> None:
    network = pack.stored(num_slots, in_page_cache=True)
    assert_equal(logits_of(network, EVERY_BATCH), logits_of(pack.resident(), EVERY_BATCH))
    assert store_of(network).counts().misses > 0


def test_pages_of_an_expert_are_dropped_when_its_slot_takes_another_one(wide: Pack) -> None:
    """Of six experts of 3 MB two stay in the page cache, and the other weights of 0.4 MB."""
    network, size = wide.stored(2, memory="copy", in_page_cache=True), read_header(wide.folder).file_bytes
    assert cached_bytes(wide.file) is not None
    assert_equal(logits_of(network, [3, 1, 3]), logits_of(wide.resident(), [3, 1, 3]))
    pool, [batch] = KvPool(WIDE, 6, BLOCK_SIZE, "float32", CPU), list(batches(WIDE, [1]))
    wide.file.read_bytes()
    assert (cached_bytes(wide.file) or 0) >= size, "else nothing needs to be dropped"
    for _ in range(2):
        network.forward(routed(batch, {0, 1, 2}, WIDE), pool)
    wait_until(lambda: (cached_bytes(wide.file) or 0) < size * 5 // 6)


class LongDrops:
    """The functions of the page cache: dropping an expert lasts until it is read, which is wrong, or for a while."""

    def __init__(self, call: ctypes.CDLL) -> None:
        self._populate = call.smoe_populate
        self._dropping: list[range] = []
        self._changed = threading.Condition()
        self.num_drops = self.num_read_while_dropped = 0
        self.populate, self.unpopulate = ReadFunction(self._read), ReadFunction(self._drop)

    def _read(self, context: int, memory: int, num_bytes: int, position: int) -> int:
        with self._changed:
            self.num_read_while_dropped += any(position in dropped for dropped in self._dropping)
            self._changed.notify_all()
        return int(self._populate(context, memory, num_bytes, position))

    def _drop(self, context: int, memory: int, num_bytes: int, position: int) -> int:
        with self._changed:
            self.num_drops += 1
            self._dropping.append(range(position, position + num_bytes))
            self._changed.wait_for(lambda: self.num_read_while_dropped, 0.03)
            self._dropping.remove(range(position, position + num_bytes))
        return 0


@pytest.fixture
def long_drops(monkeypatch: pytest.MonkeyPatch) -> Iterator[LongDrops]:
    drops = LongDrops(LIBRARY.call)
    monkeypatch.setattr(LIBRARY.call, "smoe_populate", drops.populate)
    monkeypatch.setattr(LIBRARY.call, "smoe_unpopulate", drops.unpopulate)
    yield drops
    wait_until(lambda: not drops._dropping)


def test_an_expert_is_not_read_while_its_pages_are_dropped(wide: Pack, long_drops: LongDrops) -> None:
    network = wide.stored(2, in_page_cache=True)
    pool, [batch] = KvPool(WIDE, 6, BLOCK_SIZE, "float32", CPU), list(batches(WIDE, [1]))
    for _ in range(4):
        network.forward(routed(batch, {0, 1, 2}, WIDE), pool)
    assert long_drops.num_drops and not long_drops.num_read_while_dropped


def test_an_expert_that_a_cut_file_has_no_more_is_named_in_the_page_cache_too(wide: Pack, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / WEIGHTS_NAME).write_bytes(wide.file.read_bytes())
    network = Pack(cut, WIDE).stored(3, memory="copy", in_page_cache=True)
    os.truncate(cut / WEIGHTS_NAME, read_header(wide.folder).tensors["layers.1.experts.1"].start)
    pool, [batch] = KvPool(WIDE, 6, BLOCK_SIZE, "float32", CPU), list(batches(WIDE, [1]))
    with pytest.raises(ExpertReadError, match=r"expert [12] of layer 1 cannot be read .* the file ends before it$"):
        network.forward(routed(batch, {0, 1, 2}, WIDE), pool)
