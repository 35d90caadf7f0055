"""Memory and cores are read from /proc and from the cgroup's files, of both versions."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.capacity.machine.host_resources import (
    available_bytes,
    cgroup_headroom_bytes,
    format_bytes,
    memory_limit_bytes,
    num_cores,
    process_tree_bytes,
)


@pytest.mark.parametrize(("limit", "expected"), [("1000", 700), ("200", 0), ("max", 2**62)])
def test_a_cgroup_limits_what_is_available(tmp_path: Path, limit: str, expected: int) -> None:
    cgroup = tmp_path / "sys/fs/cgroup"
    cgroup.mkdir(parents=True)
    (cgroup / "memory.max").write_text(limit + "\n")
    (cgroup / "memory.current").write_text("300\n")
    assert cgroup_headroom_bytes(tmp_path) == expected


@pytest.mark.parametrize(
    ("folder", "limit_file", "usage_file", "prefix"),
    [
        ("sys/fs/cgroup", "memory.max", "memory.current", ""),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ],
)
def test_the_page_cache_of_a_cgroup_counts_as_available(
    tmp_path: Path, folder: str, limit_file: str, usage_file: str, prefix: str
) -> None:
    cgroup = tmp_path / folder
    cgroup.mkdir(parents=True)
    (cgroup / limit_file).write_text("1000\n")
    (cgroup / usage_file).write_text("900\n")
    (cgroup / "memory.stat").write_text(f"anon 200\n{prefix}inactive_file 500\n{prefix}active_file 150\nshmem 50\n")
    assert cgroup_headroom_bytes(tmp_path) == 1000 - 250


def test_the_limit_is_the_smaller_of_the_cgroups_and_the_machines(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:       1000 kB\nMemFree: 10 kB\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert memory_limit_bytes(tmp_path) == 1000 * 1024
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("5000\n")
    assert memory_limit_bytes(tmp_path) == 5000


def test_the_whole_tree_counts_and_files_that_are_mapped_do_not(tmp_path: Path) -> None:
    for pid, children, anonymous in (("self", "7 9", 100), ("7", "8", 30), ("8", "", 5), ("9", "", 1)):
        (tmp_path / pid / "task" / pid).mkdir(parents=True)
        (tmp_path / pid / "task" / pid / "children").write_text(children)
        (tmp_path / pid / "status").write_text(f"Name: x\nRssAnon: {anonymous} kB\nRssFile: 999 kB\nRssShmem: 1 kB\n")
    assert process_tree_bytes(tmp_path) == (136 + 4) * 1024
    assert process_tree_bytes() > 1 << 20


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1)])
def test_the_cgroups_quota_limits_the_threads(tmp_path: Path, quota: str, cores: int | None) -> None:
    unlimited = num_cores(tmp_path)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(quota)
    assert num_cores(tmp_path) == (cores or unlimited)


def test_available_memory_is_part_of_the_machines() -> None:
    (total,) = (value for name, value in meminfo() if name == "MemTotal:")
    assert 0 < available_bytes() <= total


def meminfo() -> Iterator[tuple[str, int]]:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, count, *_ = line.split()
        yield name, int(count) * 1024


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1234567, "1.2 MiB"), (5 << 40, "5.0 TiB")],
)
def test_bytes_are_formatted_in_binary_units(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_a_process_that_ends_while_the_tree_is_read_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is found, and gone when it is listed."""
    (tmp_path / "self/task/1").mkdir(parents=True)
    (tmp_path / "7/task").mkdir(parents=True)
    (tmp_path / "self/status").write_text("RssAnon: 4 kB\n")
    (tmp_path / "self/task/1/children").write_text("7 ")

    def vanishing(list_folder: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def listed(folder: Path) -> Any:
            if Path(folder) == tmp_path / "7/task":
                raise ProcessLookupError
            return list_folder(folder)

        return listed

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, vanishing(getattr(os, name)))
    assert process_tree_bytes(tmp_path) == 4 * 1024
