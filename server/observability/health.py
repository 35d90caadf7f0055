"""Health, answered from memory: never a question to the engine, never a wait."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from server.engine_client.client import EngineStatus

LAG_PROBE_INTERVAL_S = 0.25
LAG_WINDOW_S = 10.0


def readiness(status: EngineStatus) -> tuple[int, dict[str, str | int]]:
    """HTTP status and body of /health/ready: 200 only while new requests are taken.

    `status` is "ok" or "unavailable", `phase` one of loading, ready, stuck, restarting, draining, dead.
    """
    return (200 if status.phase == "ready" else 503), _body(status, is_ok=status.phase == "ready")


def liveness(status: EngineStatus) -> tuple[int, dict[str, str | int]]:
    """HTTP status and body of /health/live: 503 where nothing makes progress, neither an engine nor its start."""
    is_alive = status.phase not in ("stuck", "dead")
    return (200 if is_alive else 503), _body(status, is_ok=is_alive)


def _body(status: EngineStatus, *, is_ok: bool) -> dict[str, str | int]:
    """Nothing of `status.message`: it may name paths."""
    return {
        "status": "ok" if is_ok else "unavailable",
        "phase": status.phase,
        "stage": status.stage,
        "loaded_bytes": status.loaded_bytes,
        "total_bytes": status.total_bytes,
    }


class LagProbe:
    """Measures how late the event loop runs what is due, and reports the worst of the last 10 s."""

    def __init__(self, report: Callable[[float], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`report` gets seconds after each measurement."""
        self._report = report
        self._clock = clock
        self._lags: deque[float] = deque(maxlen=round(LAG_WINDOW_S / LAG_PROBE_INTERVAL_S))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            due_s = self._clock() + LAG_PROBE_INTERVAL_S
            await asyncio.sleep(LAG_PROBE_INTERVAL_S)
            self.measure(due_s)

    def measure(self, due_s: float) -> None:
        """Record that what was due at `due_s` runs now."""
        self._lags.append(max(0.0, self._clock() - due_s))
        self._report(max(self._lags))
