"""Log one line about the throughput every 10 s while there is load, and none while there is not."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from server.observability.recent_load import LoadPoint, RecentLoad

INTERVAL_S = 10
logger = logging.getLogger("smoe.throughput")


class ThroughputLog:
    """Writes the lines."""

    def __init__(self, recent: RecentLoad, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """`sleep` waits for so many seconds of the clock of `recent`."""
        self._recent = recent
        self._sleep = sleep

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._sleep(INTERVAL_S)
            self.write()

    def write(self) -> None:
        """Log the last interval, unless no request ran or waited in it: an idle engine reports empty steps too."""
        [point] = self._recent.points(INTERVAL_S, 1)
        load = (point.prompt_tokens_per_s, point.generated_tokens_per_s, point.running, point.waiting)
        if point.step_ms is not None and any(load):
            logger.info("throughput", extra={"fields": _fields(point)})


def _fields(point: LoadPoint) -> dict[str, str | int | float]:
    fields: dict[str, str | int | float] = {
        "prompt_tokens_per_s": round(point.prompt_tokens_per_s, 1),
        "tokens_per_s": round(point.generated_tokens_per_s, 1),
        "running": point.running,
        "waiting": point.waiting,
        "kv_usage": round(point.kv_usage, 3),
    }
    times = {"step_ms": point.step_ms, "ttft_p50_ms": point.ttft_p50_ms, "ttft_p99_ms": point.ttft_p99_ms}
    return fields | {name: round(time_ms, 1) for name, time_ms in times.items() if time_ms is not None}
