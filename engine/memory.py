"""How much memory this process may still use, and how large a KV pool fits into it."""

from pathlib import Path

import torch

CGROUP_V2 = Path("/sys/fs/cgroup")
CGROUP_V1 = Path("/sys/fs/cgroup/memory")


def available_bytes(device: torch.device) -> int:
    """What can still be allocated: the card's free memory, or the machine's under the cgroup's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return min(_meminfo_available(), cgroup_headroom_bytes(CGROUP_V2, CGROUP_V1))


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable line")


def cgroup_headroom_bytes(v2: Path, v1: Path) -> int:
    """Limit minus use of this process's cgroup, or a number beyond any machine where there is none."""
    for limit_file, usage_file in (
        (v2 / "memory.max", v2 / "memory.current"),
        (v1 / "memory.limit_in_bytes", v1 / "memory.usage_in_bytes"),
    ):
        if limit_file.is_file() and usage_file.is_file():
            limit = limit_file.read_text().strip()
            if limit != "max":
                return max(0, int(limit) - int(usage_file.read_text()))
    return 2**62


def format_bytes(count: int) -> str:
    """1234567 -> '1.2 MiB'."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
