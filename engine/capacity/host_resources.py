"""How much of this machine's memory a process may still use. Free of torch."""

from pathlib import Path

CGROUP_V2 = Path("/sys/fs/cgroup")
CGROUP_V1 = Path("/sys/fs/cgroup/memory")


def available_bytes() -> int:
    """What can still be allocated: the machine's available memory, under the cgroup's limit."""
    return min(_meminfo_available(), cgroup_headroom_bytes(CGROUP_V2, CGROUP_V1))


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable line")


def cgroup_headroom_bytes(v2: Path, v1: Path) -> int:
    """Limit minus use of this process's cgroup, or a number beyond any machine where there is none.

    The page cache counts as use, a checkpoint that was just read or downloaded included, but gives way when memory is
    asked for: so what it holds of files is headroom.
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
    """The sum of a memory.stat's lines "active_file 4096" and "inactive_file 8192"; 0 where there is no such file."""
    if not statistics.is_file():
        return 0
    counts = dict(line.split() for line in statistics.read_text().splitlines())
    return sum(int(counts.get(f"{prefix}{name}", 0)) for name in ("active_file", "inactive_file"))


def format_bytes(count: int) -> str:
    """1234567 -> '1.2 MiB'."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
