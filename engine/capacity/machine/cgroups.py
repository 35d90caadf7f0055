"""Limits of this process's cgroup and of all cgroups around it, of both versions. No torch.

A limit of systemd (MemoryMax of a slice), Slurm or a container holds for everything below it, so the smallest limit
between the process's own cgroup and the top of the mounted hierarchy counts.

Sources: man 7 cgroups and man 5 proc (/proc/self/cgroup, /proc/self/mountinfo); the kernel's documents
admin-guide/cgroup-v2.rst, admin-guide/cgroup-v1/memory.rst and scheduler/sched-bwc.rst (cpu.cfs_quota_us).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
DEFAULT_MOUNTS = {"": "/sys/fs/cgroup", "memory": "/sys/fs/cgroup/memory", "cpu": "/sys/fs/cgroup/cpu"}
RECLAIMABLE = ("active_file", "inactive_file", "slab_reclaimable")  # fields of memory.stat
_ESCAPE = re.compile(r"\\([0-7]{3})")  # mountinfo writes a space as \040


@dataclass(frozen=True)
class MemoryLimit:
    """Limit of one cgroup, and the part of it that is in use."""

    limit_bytes: int
    used_bytes: int  # without what the kernel drops when memory is needed: the page cache, and caches of its own


def memory_limits(root: Path = ROOT) -> Iterator[MemoryLimit]:
    """Yield the memory limits that hold for this process, innermost first. `root`: where /proc and /sys are."""
    for cgroup in _enclosing_cgroups(root, ""):
        yield from _memory_limit(cgroup, _number(cgroup / "memory.max"), "memory.current", "")
    for depth, cgroup in enumerate(_enclosing_cgroups(root, "memory")):
        if depth and _text(cgroup / "memory.use_hierarchy") == "0":
            continue  # this limit holds for the cgroup's own processes only
        # The second number includes limits of cgroups that are not mounted here.
        limits = (_number(cgroup / "memory.limit_in_bytes"), _statistics(cgroup).get("hierarchical_memory_limit"))
        limit = min((limit for limit in limits if limit is not None), default=None)
        yield from _memory_limit(cgroup, limit, "memory.usage_in_bytes", "total_")


def cpu_quotas(root: Path = ROOT) -> Iterator[int]:
    """Yield the whole cores of each CPU quota that holds for this process; 0 for less than one core."""
    for cgroup in _enclosing_cgroups(root, ""):
        yield from _cores(*(_text(cgroup / "cpu.max").split() or ("max",)))
    for cgroup in _enclosing_cgroups(root, "cpu"):
        yield from _cores(_text(cgroup / "cpu.cfs_quota_us"), _text(cgroup / "cpu.cfs_period_us"))


def _cores(quota: str, period: str = "100000") -> Iterator[int]:
    """Yield the cores of a quota: microseconds of CPU time per period. "max", "-1" and "" are no quota."""
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:
        yield int(quota) // int(period)


def _memory_limit(cgroup: Path, limit: int | None, usage_file: str, prefix: str) -> Iterator[MemoryLimit]:
    if limit is not None:
        statistics = _statistics(cgroup)
        cache = sum(statistics.get(f"{prefix}{name}", 0) for name in RECLAIMABLE)
        yield MemoryLimit(limit, max(0, (_number(cgroup / usage_file) or 0) - cache))


def _enclosing_cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and its ancestors in the hierarchy of a version 1 controller, or of
    version 2 (""). Without a mount that shows the process's cgroup: the folder where the hierarchy usually is."""
    own = _own_cgroup(root, controller)
    found = False
    for mount_root, mount_point in _mounts(root, controller):
        if own is not None and own.is_relative_to(mount_root) and ".." not in own.parts:
            found = True
            inner = own.relative_to(mount_root)
            top = root / mount_point.lstrip("/")
            yield from (top / part for part in (inner, *inner.parents))
    if not found:
        yield root / DEFAULT_MOUNTS[controller].lstrip("/")


def _own_cgroup(root: Path, controller: str) -> PurePosixPath | None:
    """Find this process's path in lines like "4:memory:/slurm/job_7" (version 1) and "0::/user.slice" (version 2)."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3 and controller in fields[1].split(","):
            return PurePosixPath(fields[2])
    return None


def _mounts(root: Path, controller: str) -> Iterator[tuple[str, str]]:
    """Yield the mounted part of the hierarchy and the folder where it is, from lines of /proc/self/mountinfo:

    35 31 0:32 /docker/1a2b /sys/fs/cgroup/memory ro,nosuid master:9 - cgroup cgroup rw,memory
    """
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, source = (part.split() for part in line.partition(" - "))
        if len(mount) < 5 or len(source) < 3:
            continue
        controllers = [""] if source[0] == "cgroup2" else source[2].split(",") if source[0] == "cgroup" else []
        if controller in controllers:
            yield _unescaped(mount[3]), _unescaped(mount[4])


def _unescaped(path: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), path)


def _statistics(cgroup: Path) -> Mapping[str, int]:
    """Read lines like "active_file 4096" of memory.stat; empty if the file does not exist."""
    fields = (line.split() for line in _text(cgroup / "memory.stat").splitlines())
    return {pair[0]: int(pair[1]) for pair in fields if len(pair) == 2 and pair[1].isdecimal()}


def _number(path: Path) -> int | None:
    """Read a file with one number; None for "max" or if the file does not exist."""
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    """Read a small file; "" if it does not exist or its cgroup was just removed."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""
