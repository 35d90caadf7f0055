"""The share of a file that is in memory, where the system can tell."""

import ctypes
import mmap
from pathlib import Path

import pytest

from engine.capacity.machine import page_cache
from engine.capacity.machine.page_cache import cached_bytes


class FakeLibc:
    """Answers cachestat with 7 cached pages, or with an error."""

    def __init__(self, result: int) -> None:
        self._result = result

    def syscall(self, number: int, descriptor: int, whole_file: object, counters: "list[int]", flags: int) -> int:
        assert number == 451 and descriptor > 2 and flags == 0 and list(whole_file) == [0, 0]  # type: ignore[call-overload]
        counters[0] = 7
        return self._result


def test_cached_pages_are_counted_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(bytes(3 * mmap.PAGESIZE))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeLibc(0))
    assert cached_bytes(tmp_path / "a") == 7 * mmap.PAGESIZE


def test_an_older_kernel_and_a_missing_file_give_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"a")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeLibc(-1))
    assert cached_bytes(tmp_path / "a") is None
    assert cached_bytes(tmp_path / "none") is None
    monkeypatch.setattr(page_cache.sys, "platform", "darwin")
    assert cached_bytes(tmp_path / "a") is None


def test_a_file_that_was_just_written_is_in_memory_if_the_system_can_tell(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(5 * mmap.PAGESIZE + 1))
    assert cached_bytes(tmp_path / "a") in (None, 6 * mmap.PAGESIZE)
