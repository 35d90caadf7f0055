"""Memory and cores of this machine and of the cgroups around this process. No torch."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from engine.capacity.machine.cgroups import ROOT, cpu_quotas, memory_limits

PROC = Path("/proc")


def available_bytes() -> int:
    """Bytes that this process can still allocate: the machine's available memory, under the cgroups' limits."""
    return min(_meminfo_available(), cgroup_headroom_bytes())


def _meminfo_available() -> int:
    for name, value in _kilobyte_fields(PROC / "meminfo"):
        if name == "MemAvailable":
            return value
    raise RuntimeError("/proc/meminfo has no MemAvailable line")


def cgroup_headroom_bytes(root: Path = ROOT) -> int:
    """Return the smallest difference of limit and use over all cgroups around this process; 2**62 without a limit.

    `root`: where /proc and /sys are. The page cache does not count as use, for example a checkpoint that was just
    read: the kernel drops it when memory is needed.
    """
    return min((max(0, limit.limit_bytes - limit.used_bytes) for limit in memory_limits(root)), default=2**62)


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """Return the smallest of the cgroups' memory limits and the machine's memory; None if none of them is known."""
    limits = [limit.limit_bytes for limit in memory_limits(root)]
    meminfo = root / "proc/meminfo"
    if meminfo.is_file():
        limits += [value for name, value in _kilobyte_fields(meminfo) if name == "MemTotal"]
    return min(limits, default=None)


def bytes_in_use(limit_bytes: int, proc: Path = PROC, root: Path = ROOT) -> int:
    """Return how much of `limit_bytes`, the limit of memory_limit_bytes(), is in use: by the processes of this tree, or
    by the counters of the cgroups if that is more. These include kernel memory, page tables and other processes.

    Of nested cgroups the one with the least room counts: with 30 of 100 bytes free in the inner one and 20 of 500 in
    the outer one, 80 of 100 are in use.
    """
    return max(process_tree_bytes(proc), limit_bytes - cgroup_headroom_bytes(root))


def process_tree_bytes(proc: Path = PROC) -> int:
    """Anonymous and shared memory of this process and its descendants. File pages do not count: the kernel can drop
    them."""
    return sum(_resident_bytes(proc / pid / "status") for pid in _process_tree(proc, "self"))


def _process_tree(proc: Path, pid: str) -> Iterator[str]:
    yield pid
    for child in _children(proc / pid / "task"):
        yield from _process_tree(proc, child)


def _children(tasks: Path) -> list[str]:
    """Return the children of a process's threads; none of a process or thread that ends meanwhile."""
    found: list[str] = []
    with contextlib.suppress(OSError):  # Path.glob would raise one of these
        for thread in os.listdir(tasks):
            with contextlib.suppress(OSError):
                found += (tasks / thread / "children").read_text().split()
    return found


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


def num_cores(root: Path = ROOT) -> int:
    """Number of cores that this process may use, by its CPU affinity and its cgroups' quotas; at least 1."""
    return max(1, min(len(os.sched_getaffinity(0)), *cpu_quotas(root), 2**31))


def format_bytes(count: int) -> str:
    """1234567 -> '1.2 MiB'."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
