"""Detect an engine process that makes no progress, by a counter that it increments. Sans-IO: time is an argument."""

from dataclasses import dataclass

MAX_OBSERVED_S = 1.0  # limit per observation: the watcher may have been suspended since the last one


@dataclass(frozen=True)
class WatchdogTimeouts:
    """Times after which a process without progress is reported, and killed.

    A stopped engine is reported within 10 s, one that pauses for 8 s is not. The difference covers the observation
    interval and the interval at which an idle engine increments its counter (engine/process.py: 0.5 s).
    """

    observe_interval_s: float = 0.25
    stuck_after_s: float = 9.0
    kill_after_s: float = 60.0  # it may recover before: a debugger stopped it, or the machine is short of memory
    kill_loading_after_s: float = 600.0  # longer, because imports from a slow disk do not increment the counter


DEFAULT_TIMEOUTS = WatchdogTimeouts()


class Watchdog:
    """Measures how long the counter of one engine process has been stalled.

    A counter that is still 0 counts too: a process may be stopped before it can increment it.
    """

    def __init__(self, now_s: float) -> None:
        self._count = 0
        self._observed_s = now_s
        self._stalled_s = 0.0

    def observe(self, count: int, now_s: float) -> float:
        """Return for how many seconds the counter has been stalled."""
        passed_s, self._observed_s = now_s - self._observed_s, now_s
        if count == self._count:
            self._stalled_s += min(passed_s, MAX_OBSERVED_S)
        else:
            self._count, self._stalled_s = count, 0.0
        return self._stalled_s
