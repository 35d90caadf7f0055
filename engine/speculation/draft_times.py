"""Learned time of a decode step with drafts, given the time of the step without them."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.speculation.row_times import OUTLIER, TimeShape, last_in_group

KEPT = 0.95  # of the weight of what is known, for each new step
FADED = 0.95  # likewise, for each step whose drafts seemed not to pay: what looks too slow is tried again some time
NOISE = 0.1  # usual error of a step's time, relative to what the shape says
SETTLED = 0.1  # share of the way from what is held to the solution, for each new step
FIRST = 1.0, 0.0, 0.0  # s, m, h before any step
SWEEPS = 2  # of the solution's refinement; it begins with the last one

Numbers = tuple[float, float, float]


@dataclass(slots=True)
class _Sums:
    """Weighted sums of products, over the steps so far: of the inputs of s, m and h (1), and of what is to be explained
    (y). Numbers of their own instead of a matrix: this is computed in each step, behind the network."""

    ss: float = 0.0
    sm: float = 0.0
    sh: float = 0.0
    mm: float = 0.0
    mh: float = 0.0
    hh: float = 0.0
    sy: float = 0.0
    my: float = 0.0
    hy: float = 0.0

    def plus(self, kept: float, weight: float, s: float, m: float, y: float) -> "_Sums":
        """Return the sums, of which a share is kept, with one more step."""
        ws, wm, wy = weight * s, weight * m, weight * y
        return _Sums(
            kept * self.ss + ws * s,
            kept * self.sm + ws * m,
            kept * self.sh + ws,
            kept * self.mm + wm * m,
            kept * self.mh + wm,
            kept * self.hh + weight,
            kept * self.sy + wy * s,
            kept * self.my + wy * m,
            kept * self.hy + wy,
        )


class DraftTimes:
    """Seconds of a step of `num_rows` rows, n of them without drafts, where a step of n takes p seconds:

        p (1 + s (shape(num_rows) / shape(n) - 1)) + m (num_rows - n) + h

    The three learned numbers stand for what more rows read (s), their arithmetic (m), and the host's work (h). One
    model of all numbers of rows instead of an estimate for each: few steps are enough, one bad measurement does not
    keep its number of rows from being tried again, and larger steps never seem faster. It is fitted by least squares of
    relative errors, and loosely held: at FIRST, then at what was learned, so that many steps of one size say nothing of
    others.
    """

    def __init__(self, shape: TimeShape) -> None:
        self._shape = shape
        self._solution = self._held = FIRST  # s, m, h; and what they are where no step says otherwise
        self._sums = _Sums()
        self._last_excess = 1.0  # of the last step, against its estimate
        self._sizes: set[int] = set()  # of the steps so far

    def predict(self, plain_s: float, num_requests: int, num_rows: int) -> float:
        """Return the estimated seconds of a step of so many rows; `plain_s`: of one without drafts."""
        s, m, h = self._solution
        growth = self._shape(num_rows) / self._shape(num_requests) - 1
        return plain_s * (1 + s * growth) + m * (num_rows - num_requests) + h

    def predict_each(self, plain_s: float, num_requests: int, counts: Sequence[int]) -> list[float]:
        """Return predict() for each of these numbers of drafted tokens."""
        s, m, h = self._solution
        shape = self._shape
        unit, fixed = plain_s * s / shape(num_requests), plain_s * (1 - s) + h
        return [fixed + unit * shape(num_requests + count) + m * count for count in counts]

    def of_rows(self, plain_s: float, num_requests: int, max_drafted: int) -> list[float]:
        """Return the estimated seconds of 1 .. `max_drafted` more rows, without those that any draft takes."""
        s, m, _ = self._solution
        shape, first = self._shape, self._shape(num_requests)
        unit = plain_s * s / first
        return [unit * (shape(num_requests + count) - first) + m * count for count in range(1, max_drafted + 1)]

    def record(self, plain_s: float, num_requests: int, num_rows: int, seconds: float) -> None:
        """Learn from a step with drafts.

        Of each size the first step is often slow, since memory is new; it counts only if it was fast. Any other that is
        much slower than estimated, as all are while the machine is busy, counts if the step before was, too, as the
        better of both."""
        estimate = self.predict(plain_s, num_requests, num_rows)
        excess, before = seconds / estimate, self._last_excess
        group = last_in_group(num_rows)
        is_first = group not in self._sizes
        self._sizes.add(group)
        if is_first and excess > 1:
            return
        self._last_excess = excess
        if excess > OUTLIER >= before:
            return
        seconds = estimate * min(excess, max(OUTLIER, before))
        size = plain_s * self._shape(num_rows) / self._shape(num_requests)
        weight = 1.0 / (NOISE * size) ** 2
        self._sums = self._sums.plus(KEPT, weight, size - plain_s, num_rows - num_requests, seconds - plain_s)
        self._solve(plain_s, num_requests)
        self._hold(self._solution, SETTLED)

    def fade(self, plain_s: float, num_requests: int, num_steps: int = 1) -> None:
        """Trust what is known a little less, for each of some steps without drafts."""
        self._sums = self._sums.plus(FADED**num_steps, 0.0, 0.0, 0.0, 0.0)
        self._hold(FIRST, 1 - FADED**num_steps)
        self._solve(plain_s, num_requests)

    def _hold(self, values: Numbers, share: float) -> None:
        (s, m, h), (new_s, new_m, new_h) = self._held, values
        self._held = s + share * (new_s - s), m + share * (new_m - m), h + share * (new_h - h)

    def _solve(self, plain_s: float, num_requests: int) -> None:
        """Refine the solution, none of whose numbers is negative, one number after the other."""
        # usual errors of what is held: 0.5, a plain step's time per request, and a fifth of its time
        held_s, held_m, held_h = 4.0, (num_requests / plain_s) ** 2, (5.0 / plain_s) ** 2
        sums, (at_s, at_m, at_h), (s, m, h) = self._sums, self._held, self._solution
        for _ in range(SWEEPS):
            s = max(0.0, (held_s * at_s + sums.sy - sums.sm * m - sums.sh * h) / (held_s + sums.ss))
            m = max(0.0, (held_m * at_m + sums.my - sums.sm * s - sums.mh * h) / (held_m + sums.mm))
            h = max(0.0, (held_h * at_h + sums.hy - sums.sh * s - sums.mh * m) / (held_h + sums.hh))
        self._solution = s, m, h
