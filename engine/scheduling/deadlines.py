"""Deadlines of requests in one heap, so that a step in which no deadline passes costs nothing."""

import heapq
from collections.abc import Container, Iterator
from typing import Literal

from engine.types import Request

Expiry = Literal["queue_timeout", "timeout"]
MIN_PRUNED = 64


class Deadlines:
    """Heap of (moment, request id, kind). If a request has two deadlines, the earlier one comes first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Expiry]] = []
        self._prune_at = MIN_PRUNED  # entries

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, request: Request, unfinished_ids: Container[int]) -> None:
        """Add the request's deadlines. From time to time, drop those of requests outside `unfinished_ids`.

        Without this, distant deadlines of finished requests would pile up.
        """
        if len(self._heap) >= self._prune_at:
            self._heap = [entry for entry in self._heap if entry[1] in unfinished_ids]
            heapq.heapify(self._heap)
            self._prune_at = max(MIN_PRUNED, 2 * len(self._heap))
        if request.queue_deadline_s is not None:
            heapq.heappush(self._heap, (request.queue_deadline_s, request.request_id, "queue_timeout"))
        if request.deadline_s is not None:
            heapq.heappush(self._heap, (request.deadline_s, request.request_id, "timeout"))

    def pop_expired(self, now: float) -> Iterator[tuple[int, Expiry]]:
        """Remove and yield the deadlines that have passed at `now`: request id and kind."""
        while self._heap and self._heap[0][0] <= now:
            _, request_id, expiry = heapq.heappop(self._heap)
            yield request_id, expiry
