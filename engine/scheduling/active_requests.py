"""Requests from arrival to end: which wait, which run, and which have ended while a step still uses their blocks."""

from bisect import bisect_left, insort
from collections.abc import Iterator

from engine.scheduling.blocks.manager import BlockManager
from engine.scheduling.deadlines import Deadlines, Expiry
from engine.scheduling.fairness import FairShare
from engine.scheduling.sequence import Sequence, Status
from engine.scheduling.waiting_queue import WaitingQueue


class ActiveRequests:
    """Waiting queue, running list and deadlines; frees the blocks of requests that end or are preempted."""

    def __init__(self, block_manager: BlockManager, fair_share: FairShare) -> None:
        self.waiting = WaitingQueue(fair_share)
        self.running: list[Sequence] = []  # in scheduling order
        self.unfinished: dict[int, Sequence] = {}  # by request id: waiting and running
        self._ending: dict[int, Sequence] = {}  # finished, but a step in flight still uses their blocks
        self._num_places = 0
        self._deadlines = Deadlines()
        self._block_manager = block_manager
        self._fair_share = fair_share

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.unfinished[sequence.request_id] = sequence
        self._deadlines.add(sequence.request, self.unfinished)
        self.waiting.push(sequence)

    def start(self, sequence: Sequence) -> None:
        """Move a sequence that was taken from the waiting queue to the running list."""
        sequence.status = Status.RUNNING
        self._give_place(sequence)
        insort(self.running, sequence, key=lambda s: s.place)
        self._fair_share.on_started(sequence.tenant, sequence.output_cost)

    def _give_place(self, sequence: Sequence) -> None:
        """Set the sequence's place in the scheduling order: the last one, or its former one if it was preempted.

        The running requests of each tenant are in the order of (priority, arrival). To keep this, a tenant's less
        urgent requests move behind the sequence. So a priority never moves a request before those of other tenants.
        """
        own = [s for s in self.running if s.tenant == sequence.tenant]
        num_before = bisect_left(own, sequence.order, key=lambda s: s.order)
        before, behind = own[:num_before], own[num_before:]
        if not sequence.num_preemptions or (before and before[-1].place > sequence.place):
            sequence.place = self._next_place()
        if behind and behind[0].place < sequence.place:
            for less_urgent in behind:
                less_urgent.place = self._next_place()
            self.running.sort(key=lambda s: s.place)

    def _next_place(self) -> int:
        self._num_places += 1
        return self._num_places

    def pick_victim(self) -> Sequence | None:
        """Return the last running sequence, in scheduling order, whose blocks no step in flight uses."""
        return next((s for s in reversed(self.running) if not s.num_chunks_in_flight), None)

    def preempt(self, victim: Sequence) -> None:
        """Free the victim's blocks and send it back to the waiting queue."""
        self._block_manager.free(victim)
        self._leave_running(victim)
        victim.restart()
        self.waiting.push(victim)

    def pop_expired(self, now: float) -> Iterator[tuple[Sequence, Expiry]]:
        """Yield the sequences whose deadline has passed at `now`. The caller ends them.

        A queue deadline concerns only sequences that were never scheduled; preempted ones have been.
        """
        for request_id, expiry in self._deadlines.pop_expired(now):
            sequence = self.unfinished.get(request_id)
            if sequence is not None and (expiry == "timeout" or sequence.first_scheduled_s is None):
                yield sequence, expiry

    def end(self, sequence: Sequence) -> None:
        """Remove a sequence from every list. Its blocks are freed once no step in flight uses them."""
        del self.unfinished[sequence.request_id]
        was_waiting = sequence.status is Status.WAITING
        sequence.status = Status.FINISHED
        if was_waiting:
            self.waiting.remove(sequence)
        else:
            self._leave_running(sequence)
        self._ending[sequence.request_id] = sequence
        self.free_if_idle(sequence)

    def free_if_idle(self, sequence: Sequence) -> None:
        """Free the blocks of a finished sequence, and its place among the grammar parsers, unless a step in flight uses
        them. Rows of the persistent batch keep a sequence until another one needs a row."""
        if not sequence.num_chunks_in_flight:
            self._block_manager.free(self._ending.pop(sequence.request_id))
            sequence.matcher = None

    def _leave_running(self, sequence: Sequence) -> None:
        index = bisect_left(self.running, sequence.place, key=lambda s: s.place)
        assert self.running[index] is sequence
        del self.running[index]
        self._fair_share.on_stopped(sequence.tenant, sequence.output_cost)

    def block_tables(self) -> list[list[int]]:
        """Return the block tables of all sequences that may hold blocks."""
        return [sequence.block_table for sequence in (*self.unfinished.values(), *self._ending.values())]

    def check_integrity(self) -> None:
        """Raise AssertionError if a request is in no list, or in two."""
        assert len(self.running) + len(self.waiting) == len(self.unfinished), (
            "an unfinished request is neither running nor waiting"
        )
