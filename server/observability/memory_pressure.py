"""Measure how close the server is to its memory limit, so that it rejects work before the system kills it."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Literal

from engine.capacity.machine.host_resources import bytes_in_use

INTERVAL_S = 1.0
HIGH, CRITICAL = 0.90, 0.95  # of the limit
FREE_HIGH, FREE_CRITICAL = 0.5, 0.75  # of the memory left after loading, if that is higher: weights are no pressure

Level = Literal["normal", "high", "critical"]

log = logging.getLogger("smoe.memory")


class MemoryMonitor:
    """Level of memory pressure, measured once a second.

    At "high", connections are closed after each response. At "critical", new generations are rejected, and bodies that
    are being read. Running generations continue: the budgets bound what they can still take.
    """

    def __init__(
        self,
        limit_bytes: int,
        usage: Callable[[], int] | None = None,
        on_critical: Callable[[], None] = lambda: None,
    ) -> None:
        """`usage` returns the bytes that are in use now; None: bytes_in_use(). `on_critical`: called once a second
        at "critical"."""
        self.level: Level = "normal"
        self._limit_bytes = limit_bytes
        self._on_critical = on_critical
        self._usage = usage or partial(bytes_in_use, limit_bytes)
        self._settled_bytes = 0

    def settle(self, static_bytes: int) -> None:
        """Take the memory held after loading as the baseline, which is no pressure.

        `static_bytes`: weights and KV cache, which may not be fully used yet.
        """
        self._settled_bytes = max(static_bytes, self._usage())

    def measure(self) -> None:
        """Measure the usage and set `level`."""
        used = self._usage()
        level: Level = "normal"
        if used > self._watermark(CRITICAL, FREE_CRITICAL):
            level = "critical"
        elif used > self._watermark(HIGH, FREE_HIGH):
            level = "high"
        if level != self.level:
            log.warning("memory: %d of %d MiB in use: %s", used >> 20, self._limit_bytes >> 20, level)
        self.level = level
        if level == "critical":
            self._on_critical()

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            self.measure()
            await asyncio.sleep(INTERVAL_S)

    def _watermark(self, of_limit: float, of_free: float) -> float:
        """Return the larger of a fraction of the limit, and the baseline plus a fraction of what it leaves free.

        Example for CRITICAL: a limit of 100 GB and a baseline of 90 GB give 95 GB or 90 + 0.75 * 10 = 97.5 GB.
        """
        free_bytes = max(0, self._limit_bytes - self._settled_bytes)
        return max(of_limit * self._limit_bytes, self._settled_bytes + of_free * free_bytes)
