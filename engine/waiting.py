"""The queue in front of the engine, in scheduling order."""

import heapq
from collections.abc import Iterator

from engine.sequence import Sequence, Status


class WaitingQueue:
    """A heap by `Sequence.order`. Removal is lazy: an entry whose sequence no longer waits is passed over."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Sequence]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        """All waiting sequences, in no particular order."""
        return (sequence for _, sequence in self._heap if sequence.status is Status.WAITING)

    def push(self, sequence: Sequence) -> None:
        heapq.heappush(self._heap, (sequence.order, sequence))
        self._size += 1

    def peek(self) -> Sequence | None:
        """The first in order, or None."""
        while self._heap and self._heap[0][1].status is not Status.WAITING:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Sequence:
        """Takes out what peek() returned."""
        self._size -= 1
        return heapq.heappop(self._heap)[1]

    def forget(self, sequence: Sequence) -> None:
        """Call once when a waiting sequence ends; its status must have changed already."""
        assert sequence.status is not Status.WAITING
        self._size -= 1
