"""Memory and cores of this machine and this process's cgroup. Only this file reads /proc and cgroup files. No torch."""

import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUP_V2 = Path("/sys/fs/cgroup")
CGROUP_V1 = Path("/sys/fs/cgroup/memory")
MEMORY_LIMITS = (CGROUP_V2 / "memory.max", CGROUP_V1 / "memory.limit_in_bytes")


def available_bytes() -> int:
    """Bytes that this process can still allocate: the machine's available memory, under the cgroup's limit."""
    return min(_meminfo_available(), cgroup_headroom_bytes(CGROUP_V2, CGROUP_V1))


def _meminfo_available() -> int:
    for name, value in _kilobyte_fields(PROC / "meminfo"):
        if name == "MemAvailable":
            return value
    raise RuntimeError("/proc/meminfo has no MemAvailable line")


def cgroup_headroom_bytes(v2: Path, v1: Path) -> int:
    """Return the limit of this process's cgroup minus its use, or 2**62 if no limit is set.

    The page cache counts as use, including a checkpoint that was just read, but the kernel drops it when memory is
    needed. So the cached file pages count as headroom.
    """
    for limit_file, usage_file, statistics, prefix in (
        (v2 / "memory.max", v2 / "memory.current", v2 / "memory.stat", ""),
        (v1 / "memory.limit_in_bytes", v1 / "memory.usage_in_bytes", v1 / "memory.stat", "total_"),
    ):
        if limit_file.is_file() and usage_file.is_file():
            limit = limit_file.read_text().strip()
            if limit != "max":
                used = int(usage_file.read_text()) - _page_cache_bytes(statistics, prefix)
                return max(0, int(limit) - max(0, used))
    return 2**62


def _page_cache_bytes(statistics: Path, prefix: str) -> int:
    """Add up the lines "active_file 4096" and "inactive_file 8192" of a memory.stat; 0 if the file does not exist."""
    if not statistics.is_file():
        return 0
    counts = dict(line.split() for line in statistics.read_text().splitlines())
    return sum(int(counts.get(f"{prefix}{name}", 0)) for name in ("active_file", "inactive_file"))


def memory_limit_bytes(proc: Path = PROC, cgroup_limits: tuple[Path, ...] = MEMORY_LIMITS) -> int | None:
    """Return the smaller of the cgroup's memory limit and the machine's memory; None if neither is known."""
    limits = [int(text) for path in cgroup_limits if path.is_file() and (text := path.read_text().strip()).isdecimal()]
    meminfo = proc / "meminfo"
    if meminfo.is_file():
        limits += [value for name, value in _kilobyte_fields(meminfo) if name == "MemTotal"]
    return min(limits, default=None)


def process_tree_bytes(proc: Path = PROC) -> int:
    """Anonymous and shared memory of this process and its descendants. File pages do not count: the kernel can drop
    them."""
    return sum(_resident_bytes(proc / pid / "status") for pid in _process_tree(proc, "self"))


def _process_tree(proc: Path, pid: str) -> Iterator[str]:
    yield pid
    for children in proc.glob(f"{pid}/task/*/children"):
        try:
            found = children.read_text().split()
        except OSError:  # the process has just ended
            continue
        for child in found:
            yield from _process_tree(proc, child)


def _resident_bytes(status: Path) -> int:
    try:
        return sum(value for name, value in _kilobyte_fields(status) if name in ("RssAnon", "RssShmem"))
    except OSError:
        return 0


def _kilobyte_fields(path: Path) -> Iterator[tuple[str, int]]:
    """Yield name and bytes of the lines "RssAnon:     1234 kB" of a file under /proc."""
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            yield name, int(value.removesuffix(" kB")) * 1024


def num_cores(cgroup: Path = CGROUP_V2) -> int:
    """Number of cores that this process may use, by its CPU affinity and its cgroup's quota; at least 1."""
    return max(1, min(len(os.sched_getaffinity(0)), _cgroup_cores(cgroup / "cpu.max")))


def _cgroup_cores(quota_file: Path) -> int:
    """Return the whole cores in "150000 100000" (microseconds of CPU time per period); 2**31 for "max ..."."""
    if not quota_file.is_file():
        return 2**31
    quota, period = quota_file.read_text().split()
    return 2**31 if quota == "max" else int(quota) // int(period)


def format_bytes(count: int) -> str:
    """1234567 -> '1.2 MiB'."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
