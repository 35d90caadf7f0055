"""Check of the scheduling order around one step."""

from engine.config import max_slots_per_tenant
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence, Status
from engine.scheduling.step_plan import StepPlan
from tests.simulator.record import Record
from tests.simulator.setup import Setup


class OrderCheck:
    """State of a scheduler before a step, to be compared with its state after the step. `step`: its number."""

    def __init__(self, scheduler: Scheduler, records: dict[int, Record], setup: Setup, step: int) -> None:
        self.requests = scheduler.requests
        self.served = scheduler.fair_share.served
        self.records = records
        self.by_priority = setup.by_priority
        self.step = step
        num_slots = scheduler.max_running
        has_shares = setup.by_priority and setup.num_tenants > 1
        self.max_running_each = max_slots_per_tenant(num_slots) if has_shares else num_slots
        self.running = set(self.requests.running)
        self.idle = {s for s in self.running if not s.num_chunks_in_flight}
        self.preemptions = {s: s.num_preemptions for s in self.requests.unfinished.values()}
        self.served_before = {tenant: self.served(tenant) for tenant in range(setup.num_tenants)}

    def tenant(self, sequence: Sequence) -> int:
        return self.records[sequence.request_id].request.tenant if self.by_priority else 0

    def order(self, sequence: Sequence) -> tuple[int, int]:
        """Return (priority, arrival) of the request, its order among those of its tenant."""
        record = self.records[sequence.request_id]
        return record.request.priority if self.by_priority else 0, record.arrival

    def check(self, plans: list[StepPlan], spent: set[int]) -> None:
        """Raise AssertionError if the step broke the order. `plans`: those that it launched. `spent`: tenants whose
        prompts had no time left in the step."""
        for plan in plans:
            for chunk in plan.chunks:
                self.records[chunk.sequence.request_id].was_scheduled = True
        unfinished = set(self.requests.unfinished.values())
        preempted = {s for s in unfinished if s.num_preemptions > self.preemptions.get(s, 0)}
        started = {s for plan in plans for c in plan.chunks if (s := c.sequence) not in self.running}
        waiting = {s for s in unfinished if s.status is Status.WAITING and s not in preempted}
        self._note_turns(started | preempted, unfinished)
        self._check_victims(preempted, unfinished)
        for sequence in started:
            mine = (s for s in waiting if self.tenant(s) == self.tenant(sequence))
            assert not any(self.order(s) < self.order(sequence) for s in mine), "the queue was overtaken"
        self._check_shares(started, {s for s in waiting if self.tenant(s) not in spent})

    def _note_turns(self, admitted: set[Sequence], unfinished: set[Sequence]) -> None:
        """Note in which step each request was admitted first, and which ones a later request of its tenant passed."""
        for sequence in admitted:
            record = self.records[sequence.request_id]
            record.turn = self.step if record.turn is None else record.turn
            for other in unfinished:
                if self.tenant(other) == self.tenant(sequence) and self.order(other) > self.order(sequence):
                    self.records[other.request_id].was_passed = True

    def _check_victims(self, preempted: set[Sequence], unfinished: set[Sequence]) -> None:
        spared = {s for s in self.idle if s in unfinished and s not in preempted and s.status is Status.RUNNING}
        for victim in preempted:
            assert victim in self.idle or victim not in self.running, (
                "a request was preempted while a step was computing it"
            )
            record = self.records[victim.request_id]
            for other in spared:
                if self.tenant(other) == self.tenant(victim):
                    assert self.order(other) < self.order(victim), "a request was preempted before one after it"
                elif not record.was_passed:
                    turns = self.records[other.request_id].turn, record.turn
                    assert turns[0] <= turns[1], "a request was preempted before one of another tenant's later turn"

    def _check_shares(self, started: set[Sequence], waiting: set[Sequence]) -> None:
        """Check the requests that were admitted, against the tenants of which none was admitted in this step.

        A tenant's service only grows: of a step, the least of the one and the most of the other are compared.
        """
        num_running = [self.tenant(s) for s in self.running]
        idle_tenants = {self.tenant(s) for s in waiting} - {self.tenant(s) for s in started}
        new = {self.tenant(s) for s in started if not s.num_preemptions}
        for tenant in idle_tenants:
            if num_running.count(tenant) >= self.max_running_each:
                continue
            next_one = min((s for s in waiting if self.tenant(s) == tenant), key=self.order)
            for other in new:
                assert not next_one.num_preemptions, "a preempted request was overtaken by another tenant's new one"
                assert self.served_before[other] <= self.served(tenant), "a tenant was admitted before its fair turn"
