"""When requests' time is over: one heap of moments, so that a step that nobody's time ends in costs nothing."""

import heapq
from collections.abc import Container, Iterator
from typing import Literal

from engine.types import Request

Expiry = Literal["queue_timeout", "timeout"]
MIN_PRUNED = 64


class Deadlines:
    """The deadlines of requests that have some. Of a request's two the earlier is told first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Expiry]] = []
        self._prune_at = MIN_PRUNED  # entries

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, request: Request, live: Container[int]) -> None:
        """Watches the request. Now and then drops what belongs to no `live` id: far deadlines of requests long gone."""
        if len(self._heap) >= self._prune_at:
            self._heap = [entry for entry in self._heap if entry[1] in live]
            heapq.heapify(self._heap)
            self._prune_at = max(MIN_PRUNED, 2 * len(self._heap))
        if request.queue_deadline_s is not None:
            heapq.heappush(self._heap, (request.queue_deadline_s, request.request_id, "queue_timeout"))
        if request.deadline_s is not None:
            heapq.heappush(self._heap, (request.deadline_s, request.request_id, "timeout"))

    def passed(self, now: float) -> Iterator[tuple[int, Expiry]]:
        """Takes out what is over at `now`: request ids, and which time it was."""
        while self._heap and self._heap[0][0] <= now:
            _, request_id, expiry = heapq.heappop(self._heap)
            yield request_id, expiry
