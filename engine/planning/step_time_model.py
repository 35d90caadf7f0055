"""Time of a step, from the measurements of `smoe bench engine --json`."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Protocol

import msgspec

from engine.scheduling.step_plan import StepPlan

MAX_S = 86_400.0  # of a step that a file may claim: a day


class MeasurementError(Exception):
    """A file that has no measured steps. One line."""


class MeasuredStep(msgspec.Struct, frozen=True):
    """A measured step: a decode step of `batch` rows with `context` positions each, or a prompt of `context` tokens."""

    kind: str
    batch: int
    context: int
    seconds: float


class StepTimes(Protocol):
    """Times of steps, measured or predicted."""

    request_s: float  # of a request beside its steps, until its client has the first token

    def rows_s(self, num_rows: int) -> float:
        """Return the seconds of a step of `num_rows` rows."""

    def step_s(self, plan: StepPlan) -> float:
        """Return the seconds of the plan's step."""


class StepTimeModel:
    """Seconds of a step with r rows: f(r) + a * (positions that its rows see, beyond those in the measurements of f).

    f goes through the decode steps of the shortest context and the longer prompts, with straight lines in between:
    a step's matrix products cost the same for a row of a prompt and for a decoding one. `a` is the median slope
    between decode steps of the same batch and two contexts, 0 if only one context was measured. The model leaves out
    the server's own time for a request, about a millisecond.
    """

    request_s = 0.0

    def __init__(self, steps: Sequence[MeasuredStep], window: int | None = None) -> None:
        """`window`: of attention, in positions. Raises MeasurementError without a decode step."""
        decode = [step for step in steps if step.kind == "decode"]
        if not decode:
            raise MeasurementError("has no decode steps")
        self._window = window
        self._context = min(step.context for step in decode)
        points = {step.batch: step.seconds for step in decode if step.context == self._context}
        prompts = {step.context: step.seconds for step in steps if step.kind == "prefill"}
        points |= {length: seconds for length, seconds in prompts.items() if length > max(points)}
        self._rows = sorted(points)
        self._seconds = [points[rows] for rows in self._rows]
        self._position_s = _position_s(decode)

    def rows_s(self, num_rows: int) -> float:
        """Return f(num_rows). Fewer rows than measured take as long as the fewest; more continue the last line."""
        rows, seconds = self._rows, self._seconds
        if num_rows <= rows[0]:
            return seconds[0]
        if len(rows) == 1:
            return seconds[0] * num_rows / rows[0]
        right = min(bisect_left(rows, num_rows), len(rows) - 1)
        slope = (seconds[right] - seconds[right - 1]) / (rows[right] - rows[right - 1])
        return max(0.0, seconds[right] + slope * (num_rows - rows[right]))

    def step_s(self, plan: StepPlan) -> float:
        """Return the seconds of the plan's step."""
        beyond = sum(self._beyond(chunk.start, chunk.length, is_prefill=chunk.is_prefill) for chunk in plan.chunks)
        num_rows = plan.num_tokens
        return max(self.rows_s(num_rows) + self._position_s * beyond, self._seconds[0] / 2)

    def _beyond(self, start: int, length: int, *, is_prefill: bool) -> int:
        """Positions that a chunk sees beyond those of f: the context measured for decode, itself for a prompt.

        A decode row at position 300, measured with context 256: 44. Rows 512 to 1023 of a prompt: 512 * 512.
        """
        seen = start if self._window is None else min(start, self._window)
        return seen * length if is_prefill else seen - self._context


def is_duration(seconds: float) -> bool:
    """Return whether a step can have taken so long: more than nothing, and no NaN or infinity."""
    return 0 < seconds <= MAX_S


def read_steps(figures: Mapping[str, Any]) -> list[MeasuredStep]:
    """Return the steps in the JSON of `smoe bench engine`. Raises MeasurementError."""
    try:
        steps = msgspec.convert(figures["steps"], list[MeasuredStep])
    except (KeyError, TypeError, msgspec.ValidationError):
        raise MeasurementError("is not the output of `smoe bench engine --json`") from None
    if not all(is_duration(step.seconds) and step.batch >= 1 and step.context >= 0 for step in steps):
        raise MeasurementError("has a step without rows or time")
    return steps


def _position_s(decode: Sequence[MeasuredStep]) -> float:
    """Return the seconds for a row to see one more position."""
    by_batch: dict[int, list[MeasuredStep]] = defaultdict(list)
    for step in decode:
        by_batch[step.batch].append(step)
    slopes = []
    for batch, steps in by_batch.items():
        first, last = min(steps, key=lambda s: s.context), max(steps, key=lambda s: s.context)
        if last.context > first.context:
            slopes.append((last.seconds - first.seconds) / (batch * (last.context - first.context)))
    return max(0.0, median(slopes)) if slopes else 0.0
