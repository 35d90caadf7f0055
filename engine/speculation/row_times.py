"""Learned time of a decode step by its number of rows."""

from bisect import bisect_left
from collections.abc import Callable
from functools import cache

RATE = 0.25  # share of an error that one step corrects
MAX_RISE, MAX_FALL = 1.25, 2.0  # a single step counts as at most so many times the estimate, or as its 1/MAX_FALL
MIN_STEPS = 3  # of so many rows, before their time is known well enough to compare others with it
OUTLIER = 1.25  # times its estimate, beyond which a step counts only if the one before was slow, too
NEAR = 0.25  # share of the rows, by which others may differ whose time is known
GROUPS = ((16, 1), (64, 8), (1 << 20, 16))  # up to so many rows, so many share an estimate

TimeShape = Callable[[int], float]


def time_shape(num_experts: int, experts_per_token: int) -> TimeShape:
    """Return the expected relative time of a step of so many rows, for numbers of rows that were not measured.

    A step reads the experts of its rows, of E experts on average E (1 - (1 - k/E)^rows), and computes each row. The
    shares of reading and computing are rough: they only lead to the first measurement.
    """
    share = experts_per_token / num_experts if num_experts else 1.0

    @cache
    def shape(num_rows: int) -> float:
        experts = (1 - (1 - share) ** num_rows) / share
        return 0.15 + 0.85 * experts + num_rows / 30

    return shape


class RowTimes:
    """Seconds of a step by its rows: measured numbers of rows by moving average, others from those by the shape."""

    def __init__(self, shape: TimeShape) -> None:
        self._shape = shape
        self._groups: list[int] = []  # measured numbers of rows, ascending
        self._seconds: dict[int, float] = {}
        self._num_steps: dict[int, int] = {}
        self._last_excess = 1.0  # of the last step, against its estimate

    def record(self, num_rows: int, seconds: float) -> None:
        """Learn from a step."""
        group = last_in_group(num_rows)
        self._num_steps[group] = self._num_steps.get(group, 0) + 1
        known = self._seconds.get(group)
        if known is None:
            self._groups.insert(bisect_left(self._groups, group), group)
            self._seconds[group] = seconds
        elif self._num_steps[group] <= MIN_STEPS:  # the first ones are often slow
            self._seconds[group] = min(known, seconds)
        elif not self._is_outlier(seconds / known):
            bounded = min(max(seconds, known / MAX_FALL), known * MAX_RISE)
            self._seconds[group] = known + RATE * (bounded - known)

    def _is_outlier(self, excess: float) -> bool:
        """Return whether a step is much slower than its estimate and the one before was not."""
        before, self._last_excess = self._last_excess, excess
        return excess > OUTLIER >= before

    @property
    def is_known(self) -> bool:
        """False before the first record()."""
        return bool(self._groups)

    def is_measured(self, num_rows: int) -> bool:
        """Return whether MIN_STEPS steps of about so many rows were measured: at most NEAR more or fewer."""
        return any(
            self._num_steps[group] >= MIN_STEPS
            for group in self._groups
            if abs(group - num_rows) <= NEAR * num_rows or group == last_in_group(num_rows)
        )

    def predict(self, num_rows: int) -> float:
        """Return the estimated seconds of a step: of unmeasured rows in proportion to the shape, between the measured
        neighbours. Call it after the first record()."""
        groups, group = self._groups, last_in_group(num_rows)
        place = bisect_left(groups, group)
        if place < len(groups) and groups[place] == group:
            return self._seconds[group]
        if place == 0 or place == len(groups):
            nearest = groups[min(place, len(groups) - 1)]
            return self._factor(nearest) * self._shape(num_rows)
        low, high = groups[place - 1], groups[place]
        weight = (group - low) / (high - low)
        return ((1 - weight) * self._factor(low) + weight * self._factor(high)) * self._shape(num_rows)

    def _factor(self, group: int) -> float:
        return self._seconds[group] / self._shape(group)


@cache
def last_in_group(num_rows: int) -> int:
    """Return the largest number of rows whose estimate is that of `num_rows`: 1 .. 16, 24, 32, .. 64, 80, ..."""
    size = next(size for limit, size in GROUPS if num_rows <= limit)
    return -(-num_rows // size) * size
