"""Learned time of a decode step with drafts, given the time of the step without them."""

from collections.abc import Sequence

from engine.speculation.row_times import OUTLIER, TimeShape, last_in_group

KEPT = 0.95  # of the weight of what is known, for each new step
FADED = 0.95  # likewise, for each step whose drafts seemed not to pay: what looks too slow is tried again some time
NOISE = 0.1  # usual error of a step's time, relative to what the shape says
SETTLED = 0.1  # share of the way from what is held to the solution, for each new step
FIRST = (1.0, 0.0, 0.0)  # s, m, h before any step
OTHERS = ((1, 2), (0, 2), (0, 1))  # places of the other numbers, for each
SWEEPS = 4  # of the solution's refinement; it begins with the last one


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
        self._solution = list(FIRST)  # s, m, h
        self._held = list(FIRST)  # likewise, where no step says otherwise
        self._squares = [[0.0] * 3 for _ in range(3)]  # sums of products of the inputs, weighted
        self._products = [0.0] * 3  # likewise, of the inputs and what is to be explained
        self._last_excess = 1.0  # of the last step, against its estimate
        self._sizes: set[int] = set()  # of the steps so far

    def predict(self, plain_s: float, num_requests: int, num_rows: int) -> float:
        """Return the estimated seconds of a step of so many rows; `plain_s`: of one without drafts."""
        s, m, h = self._solution
        growth = self._shape(num_rows) / self._shape(num_requests) - 1
        return plain_s * (1 + s * growth) + m * (num_rows - num_requests) + h

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
        inputs = [size - plain_s, num_rows - num_requests, 1.0]
        weight = 1.0 / (NOISE * size) ** 2
        self._weaken(KEPT)
        for row, left in zip(self._squares, inputs, strict=True):
            for column, right in enumerate(inputs):
                row[column] += weight * left * right
        self._products = [
            old + weight * value * (seconds - plain_s) for old, value in zip(self._products, inputs, strict=True)
        ]
        self._solve(plain_s, num_requests)
        self._hold(self._solution, SETTLED)

    def fade(self, plain_s: float, num_requests: int, num_steps: int = 1) -> None:
        """Trust what is known a little less, for each of some steps without drafts."""
        self._weaken(FADED**num_steps)
        self._hold(FIRST, 1 - FADED**num_steps)
        self._solve(plain_s, num_requests)

    def _weaken(self, kept: float) -> None:
        self._squares = [[kept * value for value in row] for row in self._squares]
        self._products = [kept * value for value in self._products]

    def _hold(self, values: Sequence[float], share: float) -> None:
        self._held = [old + share * (new - old) for old, new in zip(self._held, values, strict=True)]

    def _solve(self, plain_s: float, num_requests: int) -> None:
        """Refine the solution, none of whose numbers is negative, one number after the other."""
        spreads = (0.5, plain_s / num_requests, 0.2 * plain_s)  # usual errors of what is held
        held = [spread**-2 for spread in spreads]
        targets = [weight * value + of for weight, value, of in zip(held, self._held, self._products, strict=True)]
        solution = self._solution
        for _ in range(SWEEPS):
            for place, (first, second) in enumerate(OTHERS):
                row = self._squares[place]
                best = targets[place] - (row[first] * solution[first] + row[second] * solution[second])
                solution[place] = max(0.0, best / (held[place] + row[place]))
