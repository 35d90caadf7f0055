"""A run of a server in virtual time, by the requests and the times of steps in its step log."""

from collections.abc import Iterator, Sequence

from engine.planning.logged_steps import LoggedStep
from engine.planning.step_shape import StepShape, shape_of
from engine.planning.virtual_engine import Arrival, Timeline, VirtualEngine
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.step_plan import StepPlan


class ReplayedSteps:
    """Gives each step of a virtual engine the time of the next one in the log; keeps what the steps were."""

    def __init__(self, steps: Sequence[LoggedStep], window: int | None = None) -> None:
        self._seconds: Iterator[float] = iter([step.seconds for step in steps])
        self._last_s = steps[-1].seconds
        self._window = window
        self.shapes: list[StepShape] = []

    def step_s(self, plan: StepPlan) -> float:
        self.shapes.append(shape_of(plan, self._window))
        return next(self._seconds, self._last_s)


def behind_requests(steps: Sequence[LoggedStep], count: int) -> list[LoggedStep]:
    """Return the steps from the first one on that has received more than `count` requests, as warm-ups are."""
    num_added = 0
    for index, step in enumerate(steps):
        num_added += len(step.added)
        if num_added > count:
            return list(steps[index:])
    return []


def arrivals_in(steps: Sequence[LoggedStep]) -> list[Arrival]:
    """Return the requests of a log, by arrival; the first one comes at 0."""
    requests = sorted((request for step in steps for request in step.added), key=lambda request: request.arrival_s)
    first_s = requests[0].arrival_s
    return [Arrival(each.arrival_s - first_s, each.prompt_tokens, each.max_tokens) for each in requests]


def replay(
    scheduler: Scheduler, steps: Sequence[LoggedStep], request_s: float = 0.0
) -> tuple[Timeline, list[StepShape]]:
    """Run the requests of a log with the times of its steps; return the times and the steps that were planned."""
    replayed = ReplayedSteps(steps)
    timeline = VirtualEngine(scheduler, replayed.step_s, request_s).run(arrivals_in(steps), max_ttft_s=1e9)
    return timeline, replayed.shapes
