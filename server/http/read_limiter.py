"""Thousands who send at the same moment take turns, so that none of them holds the event loop for all the others."""

import asyncio
from collections import deque
from collections.abc import Callable

PER_TURN = 4  # reads of a kilobyte; a request that one of them completes costs a millisecond or two


class ReadLimiter:
    """Lets so many through in each turn of the event loop; the others wait, first come, first served."""

    def __init__(self, per_turn: int = PER_TURN) -> None:
        self._per_turn = per_turn
        self._queue: deque[Callable[[], None]] = deque()
        self._num_through = 0  # in this turn

    def try_acquire(self) -> bool:
        """Whether the caller may go on now, as one of this turn's few. Else it gives `wait` what it wanted to do."""
        if self._num_through >= self._per_turn:
            return False
        self._through()
        return True

    def wait(self, go_on: Callable[[], None]) -> None:
        """Calls `go_on` in a later turn."""
        self._queue.append(go_on)

    def _through(self) -> None:
        if not self._num_through:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._num_through += 1

    def _next_turn(self) -> None:
        self._num_through = 0
        while self._queue and self._num_through < self._per_turn:
            self._through()
            self._queue.popleft()()
