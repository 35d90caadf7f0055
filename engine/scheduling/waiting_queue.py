"""Queue of the waiting requests, which determines the order of admission.

Order: shares between tenants first. If the next requests of some tenants were preempted, the first of these in the
scheduling order; else the next request of the tenant that was served least. A tenant's next request is the first by
(priority, arrival): a priority orders the requests of its tenant only. With one tenant the order is (priority,
arrival).
"""

import heapq
from collections.abc import Callable, Iterator

from engine.scheduling.fairness import FairShare
from engine.scheduling.sequence import Sequence, Status

MIN_PRUNED = 64

MayStart = Callable[[Sequence], bool]

_Entry = tuple[tuple[int, int], Sequence]  # (priority, arrival), sequence


def _may_always(_: Sequence) -> bool:
    return True


class WaitingQueue:
    """One heap per tenant: O(tenants that wait + log n) per admission.

    Removal is lazy: entries that no longer wait are skipped, and pruned once they outnumber the waiting ones.
    """

    def __init__(self, fair_share: FairShare | None = None) -> None:
        self.fair_share = fair_share or FairShare()
        self._heaps: dict[int, list[_Entry]] = {}  # by tenant
        self._size = 0
        self._num_stale = 0  # upper bound of the entries that no longer wait

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        """Yield all waiting sequences in no particular order."""
        for heap in self._heaps.values():
            yield from (sequence for _, sequence in heap if sequence.status is Status.WAITING)

    def push(self, sequence: Sequence) -> None:
        self._size += 1
        self.fair_share.on_queued(sequence.tenant)
        heapq.heappush(self._heaps.setdefault(sequence.tenant, []), (sequence.order, sequence))

    def peek(self, may_start: MayStart = _may_always) -> Sequence | None:
        """Return the sequence to admit next, or None. Tenants whose next request may not start are skipped."""
        if not self._heaps:  # in most steps
            return None
        heads = (head for tenant in list(self._heaps) if (head := self._head(tenant)) is not None)
        return min(filter(may_start, heads), key=self._turn, default=None)

    def pop(self, may_start: MayStart = _may_always) -> Sequence:
        """Remove and return the sequence that peek() returns. There must be one."""
        sequence = self.peek(may_start)
        assert sequence is not None
        heapq.heappop(self._heaps[sequence.tenant])
        self._size -= 1
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

    def _head(self, tenant: int) -> Sequence | None:
        """Return the tenant's next request, or None if it has none or is at its limit of running requests."""
        heap = self._heaps[tenant]
        while heap and heap[0][1].status is not Status.WAITING:
            heapq.heappop(heap)
            self._num_stale -= 1
        if not heap:
            del self._heaps[tenant]
            return None
        return None if self.fair_share.at_limit(tenant) else heap[0][1]

    def _turn(self, head: Sequence) -> tuple[bool, int, int]:
        """Return the place of a tenant's next request among those of all tenants, lowest first."""
        if head.num_preemptions:
            return False, head.place, 0
        return True, self.fair_share.served(head.tenant), head.order[1]

    def _prune(self) -> None:
        """Drop entries that no longer wait: they would pile up while requests are aborted and none is admitted."""
        self._num_stale = 0
        for tenant, heap in list(self._heaps.items()):
            heap[:] = [entry for entry in heap if entry[1].status is Status.WAITING]
            heapq.heapify(heap)
            if not heap:
                del self._heaps[tenant]
