"""How near the server's processes are to the memory they may have, so that work is refused before the system kills."""

import asyncio
import logging
from collections.abc import Callable
from typing import Literal

from engine.capacity.host_resources import process_tree_bytes

INTERVAL_S = 1.0
HIGH, CRITICAL = 0.90, 0.95  # of the limit
ROOM_HIGH, ROOM_CRITICAL = 0.5, 0.75  # of what loading left, where that is later: big weights alone are no pressure

Level = Literal["normal", "high", "critical"]

log = logging.getLogger("smoe.memory")


class MemoryMonitor:
    """The level of pressure, measured once a second. Above the first watermark connections are not kept, above the
    second no new generation is taken; what runs goes on."""

    def __init__(self, limit_bytes: int, usage: Callable[[], int] | None = None) -> None:
        """`usage` gives the bytes that the processes hold now."""
        self.level: Level = "normal"
        self._limit_bytes = limit_bytes
        self._usage = usage or process_tree_bytes
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
