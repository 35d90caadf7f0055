"""Experts of a mapped pack that is larger than memory: read into the page cache, and dropped from it."""

import ctypes
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.capacity.machine.page_cache import cached_bytes
from model.checkpoint.pack.header import WEIGHTS_NAME, read_header
from model.kv_pool import KvPool
from model.ops.huge_pages import HUGE_PAGE_BYTES
from model.ops.native.expert_store import ExpertReadError, ReadFunction
from model.pack import weight_memory
from model.pack.system_calls import advise
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


def in_small_pages(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill the page cache with all of the file, in pages of the smallest size; let later mappings read nothing ahead.

    A large page that two experts share stays while one of them is used, and what is read ahead of an expert is the next
    one: beside experts of 3 MB that is nearly all. It depends on the disk and on the order in which reads end.
    """
    with file.open("rb", buffering=0) as stream:
        wait_until(lambda: not after_dropping(file, stream.fileno()))
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        stream.read()
    monkeypatch.setattr(weight_memory, "advise", lambda address, size, _: advise(address, size, mmap.MADV_RANDOM))


def after_dropping(file: Path, descriptor: int) -> int | None:
    """Drop the file from the page cache; return how much is left."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return cached_bytes(file)


def test_pages_of_an_expert_are_dropped_when_its_slot_takes_another_one(
    wide: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six experts of 3 MB two stay in the page cache, and the other weights of 0.4 MB."""
    in_small_pages(wide.file, monkeypatch)
    size = read_header(wide.folder).file_bytes
    network = wide.stored(2, memory="copy", in_page_cache=True)
    pool, [batch] = KvPool(WIDE, 6, BLOCK_SIZE, "float32", CPU), list(batches(WIDE, [1]))
    assert (cached_bytes(wide.file) or 0) >= size, "else nothing needs to be dropped"
    network.forward(routed(batch, {0, 1, 2}, WIDE), pool)
    wait_until(lambda: (cached_bytes(wide.file) or 0) < size // 2)


class MeasuredDrops:
    """The functions of the page cache, one at a time: how much each drop leaves of the file's cached bytes."""

    def __init__(self, call: ctypes.CDLL, file: Path) -> None:
        self._populate, self._unpopulate, self._file = call.smoe_populate, call.smoe_unpopulate, file
        self._lock = threading.Lock()
        self.dropped_bytes: list[int] = []
        self.populate, self.unpopulate = ReadFunction(self._read), ReadFunction(self._drop)

    def _read(self, context: int, memory: int, num_bytes: int, position: int) -> int:
        with self._lock:
            return int(self._populate(context, memory, num_bytes, position))

    def _drop(self, context: int, memory: int, num_bytes: int, position: int) -> int:
        with self._lock:
            before = cached_bytes(self._file) or 0
            self._unpopulate(context, memory, num_bytes, position)
            self.dropped_bytes.append(before - (cached_bytes(self._file) or 0))
        return 0


def test_large_pages_of_an_expert_are_dropped_too(wide: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that it shares with no other expert: some experts of 3 MB have one."""
    drops = MeasuredDrops(LIBRARY.call, wide.file)
    monkeypatch.setattr(LIBRARY.call, "smoe_populate", drops.populate)
    monkeypatch.setattr(LIBRARY.call, "smoe_unpopulate", drops.unpopulate)
    network = wide.stored(2, memory="copy", in_page_cache=True)
    pool, [batch] = KvPool(WIDE, 6, BLOCK_SIZE, "float32", CPU), list(batches(WIDE, [1]))
    for _ in range(2):
        network.forward(routed(batch, {0, 1, 2}, WIDE), pool)
    wait_until(lambda: max(drops.dropped_bytes, default=0) >= HUGE_PAGE_BYTES)
    assert_equal(logits_of(network, [3, 1, 3]), logits_of(wide.resident(), [3, 1, 3]))


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
