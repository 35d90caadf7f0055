"""The steps of `python -m tests.measure.speculation.speed --steps`: rows, drafted and right tokens, their time."""

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.engine import Engine
from engine.scheduling.step_plan import StepPlan, StepResult
from engine.speculation.speculator import StepTime
from engine.types import RequestOutput

FIRST_ROWS = (1, 2, 4, 8, 16, 17, 25, 33, 49, 65, 97, 129, 193, 257)  # of the groups that are printed
PLACES = (0, 1, 2, 4, 8, 16)  # first places of the groups that are printed


@dataclass(frozen=True)
class Step:
    """A step in which every request decoded."""

    requests: int
    rows: int
    accepted: int
    seconds: float
    estimated_s: float  # 0: unknown
    choosing_s: float


class StepLog:
    """Notes each step of one engine that decodes only."""

    def __init__(self, engine: Engine) -> None:
        self._steps: list[Step] = []
        self._places: dict[int, list[int]] = defaultdict(lambda: [0, 0])  # drafted tokens at a place, right ones
        self._choosing_s = 0.0
        scheduler = engine.scheduler
        self._apply, scheduler.apply = scheduler.apply, self._applied  # type: ignore[method-assign]
        self._drafter: Any = scheduler.drafter
        if self._drafter is not None:
            self._choose, self._drafter.choose = self._drafter.choose, self._chosen

    def _chosen(self, *arguments: Any, **options: Any) -> Any:
        start_s = time.perf_counter()
        drafts = self._choose(*arguments, **options)
        self._choosing_s = time.perf_counter() - start_s
        return drafts

    def _applied(self, plan: StepPlan, result: StepResult, now: float) -> list[RequestOutput]:
        if plan.chunks and not any(chunk.is_prefill for chunk in plan.chunks):
            accepted = sum(map(len, result.behind_drafts.values()))
            step = StepTime(len(plan.chunks), plan.num_tokens, accepted, now - plan.planned_s)
            estimated_s = self._estimated_s(step)
            self._steps.append(Step(*step, estimated_s, self._choosing_s))
            self._choosing_s = 0.0
            for chunk in plan.chunks:
                self._note_places(len(chunk.draft), len(result.behind_drafts.get(chunk.sequence.request_id, ())))
        return self._apply(plan, result, now)

    def _estimated_s(self, step: StepTime) -> float:
        """Return how long the step was expected to take; 0 if that is unknown."""
        if self._drafter is None or not self._drafter._quiet_times.is_known:
            return 0.0
        plain_s: float = self._drafter._quiet_times.predict(step.num_requests)
        if step.num_rows == step.num_requests:
            return plain_s
        estimated_s: float = self._drafter._draft_times.predict(plain_s, step.num_requests, step.num_rows)
        return estimated_s

    def _note_places(self, drafted: int, accepted: int) -> None:
        """Count the places of a draft up to its first wrong token."""
        for place in range(min(drafted, accepted + 1)):
            self._places[place][0] += 1
            self._places[place][1] += place < accepted

    def print(self) -> None:
        """Print a line for each number of rows, and the acceptance by place."""
        sys.stdout.write("  requests  rows   steps   drafted   right  tokens/step  ms  estimated ms  choosing ms\n")
        groups: dict[tuple[bool, int], list[Step]] = defaultdict(list)
        for step in self._steps:
            groups[step.rows > step.requests, max(first for first in FIRST_ROWS if first <= step.rows)].append(step)
        for _, steps in sorted(groups.items()):
            sys.stdout.write(f"  {_line(steps)}\n")
        for first, end in zip(PLACES, (*PLACES[1:], 1 << 30), strict=True):
            counts = [count for place, count in self._places.items() if first <= place < end]
            if counts:
                drafted, right = (sum(column) for column in zip(*counts, strict=True))
                sys.stdout.write(f"  place {first}: {right} of {drafted} right, {right / drafted:.2f}\n")
        sys.stdout.flush()


def _line(steps: list[Step]) -> str:
    def mean(values: Callable[[Step], float]) -> float:
        return statistics.fmean(map(values, steps))

    return (
        f"{mean(lambda s: s.requests):8.1f} {mean(lambda s: s.rows):6.1f} {len(steps):6d} "
        f"{mean(lambda s: s.rows - s.requests):9.1f} {mean(lambda s: s.accepted):7.1f} "
        f"{mean(lambda s: s.requests + s.accepted):9.1f} {1e3 * statistics.median(s.seconds for s in steps):9.2f} "
        f"{1e3 * statistics.median(s.estimated_s for s in steps):9.2f} {1e3 * mean(lambda s: s.choosing_s):9.2f}"
    )
