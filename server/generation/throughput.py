"""How fast choices end here, measured: what a client that must wait is told."""

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 60.0  # older ends say nothing about now
MAX_ENDS = 512
UNMEASURED_S = 1.0  # the wait that is named before anything has ended


class RetryEstimator:
    """Moments at which choices ended, lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives monotonic seconds."""
        self._clock = clock
        self._ends_s: deque[float] = deque(maxlen=MAX_ENDS)

    def ended(self) -> None:
        """A choice left its place to another."""
        self._ends_s.append(self._clock())

    def wait_s(self, num_choices: int) -> float:
        """Until so many more will have ended, at the pace of the last minute.

        5 ends within 10 s are one each 2 s: 3 more take 6 s. The time since the last end counts, so that a pace that
        drops is seen.
        """
        now = self._clock()
        while self._ends_s and self._ends_s[0] < now - WINDOW_S:
            self._ends_s.popleft()
        if not self._ends_s:
            return UNMEASURED_S
        return max(UNMEASURED_S, num_choices * (now - self._ends_s[0]) / len(self._ends_s))
