"""Time of a step, fitted to the steps of a server under load."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from engine.planning.least_squares import nonnegative_least_squares
from engine.planning.logged_steps import LoggedStep
from engine.planning.step_shape import StepShape, shape_of
from engine.planning.step_time_model import MAX_S, MeasurementError, is_duration
from engine.scheduling.step_plan import StepPlan

MIN_STEPS = 100
MIN_S = 1e-5  # of a step
MIN_PER_KNOT = 5  # steps with about as many rows
STALL = 5.0  # times as long as its fit: a step that something else held up, and that is left out


class FittedStepTimes:
    """Seconds of a step: f(rows) + a * logits + b * positions of decode rows + c * pairs of prompts.

    f is linear between powers of two, as far as steps with about as many rows were seen; experts that more rows read
    and products that more rows compute are not in proportion to them. A row of a prompt without logits takes less time
    than a decode row, in steps of both: so logits have a price of their own. Relative errors are what the fit makes
    small, and it keeps the mean, not the median: waiting times follow the mean.
    """

    def __init__(self, steps: Sequence[LoggedStep], window: int | None = None, request_s: float = 0.0) -> None:
        """`window`: of attention; `request_s`: seconds of a request beside its steps, until its client has a token.

        Raises MeasurementError for too few steps.
        """
        if len(steps) < MIN_STEPS:
            raise MeasurementError(f"has {len(steps)} steps, where {MIN_STEPS} are needed")
        self.request_s = request_s
        self._window = window
        self._knots = _knots([step.shape.num_rows for step in steps])
        self._weights = [0.0] * (len(self._knots) + 3)
        self._weights = self._fit(steps, [1.0] * len(steps))
        self._weights = self._fit(steps, self._scales(steps))
        kept = [step for step in steps if step.seconds <= STALL * self.shape_s(step.shape)]
        self._weights = self._fit(kept, self._scales(kept))

    def rows_s(self, num_rows: int) -> float:
        """Return the seconds of a prompt of `num_rows` in one step."""
        return self.shape_s(StepShape(num_rows, 1, 0, num_rows * (num_rows + 1) // 2))

    def step_s(self, plan: StepPlan) -> float:
        """Return the seconds of the plan's step."""
        return self.shape_s(shape_of(plan, self._window))

    def shape_s(self, shape: StepShape) -> float:
        """Return the seconds of a step with this work."""
        features = self._features(shape)
        return max(0.0, sum(weight * feature for weight, feature in zip(self._weights, features, strict=True)))

    def _scales(self, steps: Sequence[LoggedStep]) -> list[float]:
        """Return factors that make errors relative to the present fit. Those relative to the steps themselves would
        favour the fast ones."""
        return [1.0 / max(self.shape_s(step.shape), MIN_S) for step in steps]

    def _fit(self, steps: Sequence[LoggedStep], scales: Sequence[float]) -> list[float]:
        rows = [
            [scale * feature for feature in self._features(step.shape)]
            for step, scale in zip(steps, scales, strict=True)
        ]
        return nonnegative_least_squares(rows, [s * step.seconds for step, s in zip(steps, scales, strict=True)])

    def _features(self, shape: StepShape) -> list[float]:
        knots = self._knots
        shares = [0.0] * len(knots)
        if shape.num_rows <= knots[0] or len(knots) == 1:
            shares[0] = max(1.0, shape.num_rows / knots[0])
        else:  # more rows than the last knot continue the last line
            left = min(bisect_right(knots, shape.num_rows), len(knots) - 1) - 1
            right_share = (shape.num_rows - knots[left]) / (knots[left + 1] - knots[left])
            shares[left], shares[left + 1] = 1.0 - right_share, right_share
        return [*shares, float(shape.num_logits), float(shape.decode_positions), float(shape.prompt_pairs)]


def read_fitted(figures: Mapping[str, Any], window: int | None = None) -> FittedStepTimes:
    """Return the times of the steps in the JSON of `smoe bench steps`. Raises MeasurementError."""
    try:
        steps = msgspec.convert(figures["steps"], list[LoggedStep])
        request_s = msgspec.convert(figures["request_s"], float)
    except (KeyError, TypeError, msgspec.ValidationError):
        raise MeasurementError("is not the output of `smoe bench steps --json`") from None
    if not all(is_duration(step.seconds) and step.shape.num_rows >= 1 for step in steps):
        raise MeasurementError("has a step without rows or time")
    if any(min(msgspec.structs.astuple(step.shape)) < 0 for step in steps):
        raise MeasurementError("has a step with a count below 0")
    if not 0 <= request_s <= MAX_S:
        raise MeasurementError("has a request_s that is no time")
    return FittedStepTimes(steps, window, request_s)


def _knots(num_rows: Sequence[int]) -> list[int]:
    """Return the powers of two that enough steps are near to, and the ends: 3 to 40 rows are 3, 4, 8, 16, 32, 40."""
    first, last = min(num_rows), max(num_rows)
    near = Counter(count.bit_length() - 1 for count in num_rows)
    inner = [1 << power for power, count in near.items() if count >= MIN_PER_KNOT and first < 1 << power < last]
    return sorted({first, *inner, last})
