"""Queue of the waiting requests, which determines the order of admission.

Order: by priority. Within a priority, preempted requests first, in their scheduling order. Then the tenant that was
served least, and of its requests the earliest. With one tenant the order is (priority, arrival).
"""

import heapq
from collections import deque
from collections.abc import Iterator

from engine.scheduling.fairness import FairShare
from engine.scheduling.sequence import Sequence, Status

MIN_PRUNED = 64


class _TenantQueue:
    """New requests of one tenant and one priority, by arrival."""

    def __init__(self, priority: int, tenant: int) -> None:
        self.priority = priority
        self.tenant = tenant
        self.sequences: deque[Sequence] = deque()

    def head(self) -> Sequence | None:
        """Drop sequences that no longer wait; return the first that does."""
        while self.sequences and self.sequences[0].status is not Status.WAITING:
            self.sequences.popleft()
        return self.sequences[0] if self.sequences else None


# (priority, is a tenant queue, turn or tokens served, arrival of the head, item)
_Entry = tuple[int, bool, int, int, Sequence | _TenantQueue]


class WaitingQueue:
    """One heap of preempted sequences and of tenant queues: O(log n) per admission and per token served.

    The place of a tenant queue only moves back, when its tenant is served or its head leaves. So its entry is compared
    with its true place only when it reaches the front. Removal is lazy: entries that no longer wait are skipped, and
    pruned once they outnumber the waiting ones.
    """

    def __init__(self, fair_share: FairShare | None = None) -> None:
        self.fair_share = fair_share or FairShare()
        self._heap: list[_Entry] = []
        self._tenant_queues: dict[tuple[int, int], _TenantQueue] = {}  # by priority and tenant
        self._throttled: dict[int, list[_TenantQueue]] = {}  # by tenant at its limit: its queues outside the heap
        self._size = 0
        self._num_stale = 0  # upper bound of the entries that no longer wait
        self._num_turns = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        """Yield all waiting sequences in no particular order."""
        preempted = (item for *_, item in self._heap if isinstance(item, Sequence))
        for sequences in (preempted, *(tenant_queue.sequences for tenant_queue in self._tenant_queues.values())):
            yield from (sequence for sequence in sequences if sequence.status is Status.WAITING)

    def push(self, sequence: Sequence) -> None:
        self._size += 1
        self.fair_share.on_queued(sequence.tenant)
        if sequence.num_preemptions:
            priority, turn = sequence.order
            heapq.heappush(self._heap, (priority, False, turn, 0, sequence))
            return
        key = sequence.order[0], sequence.tenant
        tenant_queue = self._tenant_queues.get(key)
        if tenant_queue is None:
            tenant_queue = self._tenant_queues[key] = _TenantQueue(*key)
            tenant_queue.sequences.append(sequence)
            self._enqueue(tenant_queue, sequence)
        else:
            tenant_queue.sequences.append(sequence)

    def peek(self) -> Sequence | None:
        """Return the sequence to admit next, or None."""
        while self._heap:
            item = self._heap[0][-1]
            if isinstance(item, _TenantQueue):
                head = self._head_in_place(item)
                if head is not None:
                    return head
            elif item.status is Status.WAITING:
                return item
            else:
                heapq.heappop(self._heap)
                self._num_stale -= 1
        return None

    def pop(self) -> Sequence:
        """Remove and return the sequence that peek() returned. A new one gets its turn in the scheduling order."""
        self._size -= 1
        item = self._heap[0][-1]
        if isinstance(item, _TenantQueue):
            sequence = item.sequences.popleft()
            sequence.order = sequence.order[0], self._num_turns
            self._num_turns += 1
        else:
            sequence = item
            heapq.heappop(self._heap)
        self.fair_share.on_dequeued(sequence.tenant)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Remove a waiting sequence that has ended. Call once, after its status has changed."""
        assert sequence.status is not Status.WAITING
        self._size -= 1
        self._num_stale += 1
        self.fair_share.on_dequeued(sequence.tenant)
        if self._num_stale > max(MIN_PRUNED, self._size):
            self._prune()

    def on_stopped(self, sequence: Sequence) -> None:
        """Count a running sequence that ended or was preempted; return the tenant's throttled queues to the heap."""
        self.fair_share.on_stopped(sequence.tenant)
        for tenant_queue in self._throttled.pop(sequence.tenant, ()):
            head = tenant_queue.head()
            if head is None:
                del self._tenant_queues[tenant_queue.priority, tenant_queue.tenant]
            else:
                self._enqueue(tenant_queue, head)

    def _head_in_place(self, tenant_queue: _TenantQueue) -> Sequence | None:
        """Return the head of the queue in front of the heap if this is its true place; else move the queue there."""
        head = tenant_queue.head()
        if head is None:
            heapq.heappop(self._heap)
            del self._tenant_queues[tenant_queue.priority, tenant_queue.tenant]
        elif self.fair_share.at_limit(tenant_queue.tenant):
            heapq.heappop(self._heap)
            self._throttled.setdefault(tenant_queue.tenant, []).append(tenant_queue)
        elif (entry := self._entry(tenant_queue, head)) != self._heap[0]:
            heapq.heapreplace(self._heap, entry)
        else:
            return head
        return None

    def _enqueue(self, tenant_queue: _TenantQueue, head: Sequence) -> None:
        heapq.heappush(self._heap, self._entry(tenant_queue, head))

    def _entry(self, tenant_queue: _TenantQueue, head: Sequence) -> _Entry:
        return tenant_queue.priority, True, self.fair_share.served(tenant_queue.tenant), head.order[1], tenant_queue

    def _prune(self) -> None:
        """Drop entries that no longer wait: they would pile up while requests are aborted and none is admitted."""
        self._num_stale = 0
        for tenant_queue in self._tenant_queues.values():
            tenant_queue.sequences = deque(s for s in tenant_queue.sequences if s.status is Status.WAITING)
        self._heap = [
            entry for entry in self._heap if isinstance(entry[-1], _TenantQueue) or entry[-1].status is Status.WAITING
        ]
        heapq.heapify(self._heap)
