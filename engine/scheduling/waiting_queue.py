"""The queue in front of the engine: who is let in next.

By priority; within one, first those that a preemption sent back, in their order; then the tenant that was served least,
and of its requests the earliest. With one tenant that is (priority, arrival).
"""

import heapq
from collections import deque
from collections.abc import Iterator

from engine.scheduling.fairness import FairShare
from engine.scheduling.sequence import Sequence, Status

MIN_PRUNED = 64


class _TenantQueue:
    """One tenant's newcomers of one priority, by arrival."""

    def __init__(self, priority: int, tenant: int) -> None:
        self.priority = priority
        self.tenant = tenant
        self.sequences: deque[Sequence] = deque()

    def head(self) -> Sequence | None:
        """The first that still waits."""
        while self.sequences and self.sequences[0].status is not Status.WAITING:
            self.sequences.popleft()
        return self.sequences[0] if self.sequences else None


_Entry = tuple[
    int, bool, int, int, Sequence | _TenantQueue
]  # priority, is a line; turn or tokens served; arrival of its head


class WaitingQueue:
    """One heap of sequences that came back and of lines of newcomers. A line's place only ever gets later (its tenant
    is served, its head leaves), so it is looked at again when it comes first: O(log n) per token served or request.

    Removal is lazy: what no longer waits is passed over, and swept out when it is more than what waits.
    """

    def __init__(self, tenants: FairShare | None = None) -> None:
        self.tenants = tenants or FairShare()
        self._heap: list[_Entry] = []
        self._lines: dict[tuple[int, int], _TenantQueue] = {}  # by priority and tenant
        self._throttled: dict[int, list[_TenantQueue]] = {}  # by tenant: lines that wait for one of their own to end
        self._size = 0
        self._num_gone = 0  # entries that no longer wait, at most
        self._num_turns = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        """All waiting sequences, in no particular order."""
        returned = (item for *_, item in self._heap if isinstance(item, Sequence))
        for sequences in (returned, *(line.sequences for line in self._lines.values())):
            yield from (sequence for sequence in sequences if sequence.status is Status.WAITING)

    def push(self, sequence: Sequence) -> None:
        self._size += 1
        self.tenants.on_queued(sequence.tenant)
        if sequence.num_preemptions:
            priority, turn = sequence.order
            heapq.heappush(self._heap, (priority, False, turn, 0, sequence))
            return
        key = sequence.order[0], sequence.tenant
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _TenantQueue(*key)
            line.sequences.append(sequence)
            self._enqueue(line, sequence)
        else:
            line.sequences.append(sequence)

    def peek(self) -> Sequence | None:
        """The next to be let in, or None."""
        while self._heap:
            item = self._heap[0][-1]
            if isinstance(item, _TenantQueue):
                head = self._settled(item)
                if head is not None:
                    return head
            elif item.status is Status.WAITING:
                return item
            else:
                heapq.heappop(self._heap)
                self._num_gone -= 1
        return None

    def pop(self) -> Sequence:
        """Takes out what peek() returned. A newcomer gets its turn: its place in the order of service from now on."""
        self._size -= 1
        item = self._heap[0][-1]
        if isinstance(item, _TenantQueue):
            sequence = item.sequences.popleft()
            sequence.order = sequence.order[0], self._num_turns
            self._num_turns += 1
        else:
            sequence = item
            heapq.heappop(self._heap)
        self.tenants.on_dequeued(sequence.tenant)
        return sequence

    def forget(self, sequence: Sequence) -> None:
        """Call once when a waiting sequence ends; its status must have changed already."""
        assert sequence.status is not Status.WAITING
        self._size -= 1
        self._num_gone += 1
        self.tenants.on_dequeued(sequence.tenant)
        if self._num_gone > max(MIN_PRUNED, self._size):
            self._prune()

    def stopped(self, sequence: Sequence) -> None:
        """Call when a running sequence ends or is preempted: its tenant's lines may be let in again."""
        self.tenants.on_stopped(sequence.tenant)
        for line in self._throttled.pop(sequence.tenant, ()):
            head = line.head()
            if head is None:
                del self._lines[line.priority, line.tenant]
            else:
                self._enqueue(line, head)

    def _settled(self, line: _TenantQueue) -> Sequence | None:
        """The head of the line that is first in the heap, if that is still its place; else the line is moved."""
        head = line.head()
        if head is None:
            heapq.heappop(self._heap)
            del self._lines[line.priority, line.tenant]
        elif self.tenants.at_limit(line.tenant):
            heapq.heappop(self._heap)
            self._throttled.setdefault(line.tenant, []).append(line)
        elif (entry := self._entry(line, head)) != self._heap[0]:
            heapq.heapreplace(self._heap, entry)
        else:
            return head
        return None

    def _enqueue(self, line: _TenantQueue, head: Sequence) -> None:
        heapq.heappush(self._heap, self._entry(line, head))

    def _entry(self, line: _TenantQueue, head: Sequence) -> _Entry:
        return line.priority, True, self.tenants.served(line.tenant), head.order[1], line

    def _prune(self) -> None:
        """Lets go of what no longer waits: else those who come and go while nobody is let in would pile up."""
        self._num_gone = 0
        for line in self._lines.values():
            line.sequences = deque(sequence for sequence in line.sequences if sequence.status is Status.WAITING)
        self._heap = [
            entry for entry in self._heap if isinstance(entry[-1], _TenantQueue) or entry[-1].status is Status.WAITING
        ]
        heapq.heapify(self._heap)
