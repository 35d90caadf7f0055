"""Whether the engine goes on, judged by a counter that it moves. Sans-IO: time is an argument."""

from dataclasses import dataclass

MAX_LOOK_S = 1.0  # the most that one look counts: who was itself stopped has not watched in the meantime


@dataclass(frozen=True)
class WatchdogTimeouts:
    """What is waited for, and how long.

    A stopped engine is seen within 10 s, one that stands still for 8 s is left alone: what lies between is the pace of
    the looks, and that at which an idle engine moves its counter (engine/process.py: 0.5 s).
    """

    look_s: float = 0.25  # between two looks
    stuck_after_s: float = 9.0
    kill_after_s: float = 60.0  # until then it may go on: a debugger stopped it, or a machine short of memory
    kill_loading_after_s: float = 600.0  # importing from a slow disk moves no counter


class Watchdog:
    """Watches one engine process. A counter that never moved belongs to an engine that keeps none: it is not judged."""

    def __init__(self, now_s: float) -> None:
        self._count = 0
        self._looked_s = now_s
        self._still_s = 0.0

    def observe(self, count: int, now_s: float) -> float:
        """For how many seconds it has been seen to stand still."""
        passed_s, self._looked_s = now_s - self._looked_s, now_s
        if count == self._count:
            self._still_s += min(passed_s, MAX_LOOK_S)
        else:
            self._count, self._still_s = count, 0.0
        return self._still_s if self._count else 0.0
