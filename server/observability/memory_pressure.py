"""How near the server's processes are to the memory they may have, so that work is refused before the system kills."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

INTERVAL_S = 1.0
HIGH, CRITICAL = 0.90, 0.95  # of the limit
ROOM_HIGH, ROOM_CRITICAL = 0.5, 0.75  # of what loading left, where that is later: big weights alone are no pressure
PROC = Path("/proc")
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

Level = Literal["normal", "high", "critical"]

log = logging.getLogger("smoe.memory")


class MemoryMonitor:
    """The level of pressure, measured once a second. Above the first watermark connections are not kept, above the
    second no new generation is taken; what runs goes on."""

    def __init__(self, limit_bytes: int, usage: Callable[[], int] | None = None) -> None:
        """`usage` gives the bytes that the processes hold now."""
        self.level: Level = "normal"
        self._limit_bytes = limit_bytes
        self._usage = usage or tree_bytes
        self._settled_bytes = 0

    def settle(self, static_bytes: int) -> None:
        """The model is loaded: what is held now, or will be by design (`static_bytes`: weights, KV cache), is no
        pressure."""
        self._settled_bytes = max(static_bytes, self._usage())

    def measure(self) -> None:
        """Set `level`."""
        used = self._usage()
        level: Level = "normal"
        if used > self._watermark(CRITICAL, ROOM_CRITICAL):
            level = "critical"
        elif used > self._watermark(HIGH, ROOM_HIGH):
            level = "high"
        if level != self.level:
            log.warning("memory: %d of %d MiB in use: %s", used >> 20, self._limit_bytes >> 20, level)
        self.level = level

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.measure()
            await asyncio.sleep(INTERVAL_S)

    def _watermark(self, of_limit: float, of_room: float) -> float:
        """With a limit of 100 GB: 95 GB, or of the 10 GB that weights and cache of 90 GB leave 7.5 GB more, 97.5 GB."""
        room = max(0, self._limit_bytes - self._settled_bytes)
        return max(of_limit * self._limit_bytes, self._settled_bytes + of_room * room)


def memory_limit_bytes(proc: Path = PROC, cgroup_limits: tuple[Path, ...] = CGROUP_LIMITS) -> int | None:
    """What all processes here may hold: the cgroup's limit or the machine's memory. None where nothing tells."""
    limits = [int(text) for path in cgroup_limits if path.is_file() and (text := path.read_text().strip()).isdecimal()]
    meminfo = proc / "meminfo"
    if meminfo.is_file():
        limits += [value * 1024 for name, value in _fields(meminfo) if name == "MemTotal"]
    return min(limits, default=None)


def tree_bytes(proc: Path = PROC) -> int:
    """What this process and its children hold for themselves: pages of files do not count, they give way."""
    return sum(_own_bytes(proc / pid / "status") for pid in _tree(proc, "self"))


def _tree(proc: Path, pid: str) -> Iterator[str]:
    yield pid
    for children in proc.glob(f"{pid}/task/*/children"):
        try:
            found = children.read_text().split()
        except OSError:  # it has just ended
            continue
        for child in found:
            yield from _tree(proc, child)


def _own_bytes(status: Path) -> int:
    try:
        return sum(value * 1024 for name, value in _fields(status) if name in ("RssAnon", "RssShmem"))
    except OSError:
        return 0


def _fields(path: Path) -> Iterator[tuple[str, int]]:
    """The lines "RssAnon:     1234 kB" of a file under /proc."""
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            yield name, int(value.removesuffix(" kB"))
