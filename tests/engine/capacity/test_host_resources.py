"""Memory and cores are read from /proc and from the cgroup's files, of both versions."""

from pathlib import Path

import pytest

from engine.capacity.host_resources import (
    available_bytes,
    cgroup_headroom_bytes,
    format_bytes,
    memory_limit_bytes,
    num_cores,
    process_tree_bytes,
)


@pytest.mark.parametrize(("limit", "expected"), [("1000", 700), ("200", 0), ("max", 2**62)])
def test_a_cgroup_limits_what_is_available(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert cgroup_headroom_bytes(tmp_path, tmp_path / "none") == expected


@pytest.mark.parametrize(
    ("limit_file", "usage_file", "prefix"),
    [("memory.max", "memory.current", ""), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")],
)
def test_the_page_cache_of_a_cgroup_counts_as_available(
    tmp_path: Path, limit_file: str, usage_file: str, prefix: str
) -> None:
    (tmp_path / limit_file).write_text("1000\n")
    (tmp_path / usage_file).write_text("900\n")
    (tmp_path / "memory.stat").write_text(f"anon 200\n{prefix}inactive_file 500\n{prefix}active_file 150\nshmem 50\n")
    assert cgroup_headroom_bytes(tmp_path, tmp_path) == 1000 - 250


def test_the_limit_is_the_smaller_of_the_cgroups_and_the_machines(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\nMemFree: 10 kB\n")
    limits = (tmp_path / "v2", tmp_path / "v1")
    assert memory_limit_bytes(tmp_path, limits) == 1000 * 1024
    limits[0].write_text("max\n")
    assert memory_limit_bytes(tmp_path, limits) == 1000 * 1024
    limits[1].write_text("5000\n")
    assert memory_limit_bytes(tmp_path, limits) == 5000
    assert memory_limit_bytes(tmp_path / "nowhere", ()) is None


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
    (tmp_path / "cpu.max").write_text(quota)
    assert num_cores(tmp_path) == (cores or unlimited)


def test_available_memory_is_part_of_the_machines() -> None:
    total = memory_limit_bytes(cgroup_limits=())
    assert total is not None and 0 < available_bytes() <= total


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1234567, "1.2 MiB"), (5 << 40, "5.0 TiB")],
)
def test_bytes_are_formatted_in_binary_units(count: int, text: str) -> None:
    assert format_bytes(count) == text
