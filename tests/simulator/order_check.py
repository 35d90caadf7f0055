"""Check of the scheduling order around one step."""

from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence, Status
from engine.scheduling.step_plan import StepPlan
from tests.simulator.record import Record


class OrderCheck:
    """State of a scheduler before a step, to be compared with its state after the step."""

    def __init__(self, scheduler: Scheduler, records: dict[int, Record], by_priority: bool) -> None:
        self.requests = scheduler.requests
        self.records = records
        self.by_priority = by_priority
        self.running = set(self.requests.running)
        self.idle = {s for s in self.running if not s.num_chunks_in_flight}
        self.preemptions = {s: s.num_preemptions for s in self.requests.unfinished.values()}

    def order(self, sequence: Sequence) -> tuple[int, int]:
        """Return (priority, arrival) of the request."""
        record = self.records[sequence.request_id]
        return record.request.priority if self.by_priority else 0, record.arrival

    def check(self, plans: list[StepPlan]) -> None:
        """Raise AssertionError if the step broke the order. `plans`: those that it launched."""
        for plan in plans:
            for chunk in plan.chunks:
                self.records[chunk.sequence.request_id].was_scheduled = True
        unfinished = set(self.requests.unfinished.values())
        preempted = {s for s in unfinished if s.num_preemptions > self.preemptions.get(s, 0)}
        spared = {s for s in self.idle if s in unfinished and s not in preempted and s.status is Status.RUNNING}
        for victim in preempted:
            assert victim in self.idle or victim not in self.running, (
                "a request was preempted while a step was computing it"
            )
            later = [s for s in spared if self.order(s) > self.order(victim)]
            assert not later, "a request was preempted before one that comes after it"
        started = {s for plan in plans for c in plan.chunks if (s := c.sequence) not in self.running}
        waiting = {s for s in unfinished if s.status is Status.WAITING and s not in preempted}
        for sequence in started:
            assert not any(self.order(s) < self.order(sequence) for s in waiting), "the queue was overtaken"
