"""Long work on texts and JSON, in few threads: tenants take turns, and what they used is charged to them.

More threads would not be faster, because most of this work holds the interpreter's lock; each would make the event loop
wait longer for it.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from engine.config import max_slots_per_tenant
from server.errors import text_queue_full
from server.fairness.event_loop import INLINE_CHARS

NUM_THREADS = 2
MAX_WAITING = 256
RETRY_S = 2.0
CHARS_PER_TOKEN = 256  # as much work as one token of a prompt in the engine, roughly

T = TypeVar("T")


class HeavyWork:
    """Queue of work for the threads. The tenant that has used least is next, its work in order of arrival.

    A tenant that comes back is lifted to the one that was served last, as in engine/scheduling/fairness.py. All
    methods belong to one event loop.
    """

    def __init__(self, num_tenants: int = 1, num_threads: int = NUM_THREADS, max_waiting: int = MAX_WAITING) -> None:
        """With several tenants, none has more than one thread, nor more than 7 of 8 of the places in the queue."""
        self._num_threads = num_threads
        self._max_running_each = 1 if num_tenants > 1 else num_threads
        self._max_waiting = max_waiting
        self._max_waiting_each = max_slots_per_tenant(max_waiting) if num_tenants > 1 else max_waiting
        self._waiting: dict[int, deque[tuple[int, asyncio.Future[None]]]] = {}
        self._running: Counter[int] = Counter()
        self._used: Counter[int] = Counter()  # characters, by tenant
        self._owed: Counter[int] = Counter()  # characters that the engine's shares do not count yet
        self._floor = 0
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="heavy")

    async def run(self, work: Callable[[], T], *, size: int, tenant: int) -> T:
        """Return the result of `work`. `size`: its characters or bytes; up to INLINE_CHARS it runs in the caller.

        Raises ApiError 429 if too much work waits, and what `work` raises.
        """
        if size <= INLINE_CHARS:
            return work()
        await self._turn(tenant, size)
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        future.add_done_callback(lambda _: self._end(tenant))  # also if the caller is cancelled: the thread works on
        return await asyncio.shield(future)

    def pop_owed_tokens(self, tenant: int) -> int:
        """Return the tenant's work since the last call, in tokens of the engine's shares."""
        tokens, self._owed[tenant] = divmod(self._owed[tenant], CHARS_PER_TOKEN)
        return tokens

    async def _turn(self, tenant: int, size: int) -> None:
        queue = self._waiting.get(tenant, ())
        if sum(map(len, self._waiting.values())) >= self._max_waiting or len(queue) >= self._max_waiting_each:
            raise text_queue_full(RETRY_S)
        if tenant not in self._waiting and not self._running[tenant]:
            self._used[tenant] = max(self._used[tenant], self._floor)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append((size, turn))
        self._start_next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(tenant, (size, turn))
            else:  # it has its turn, and gives it back
                self._end(tenant)
            raise

    def _leave(self, tenant: int, place: tuple[int, asyncio.Future[None]]) -> None:
        """Free a place in the queue, so that nobody is refused for it."""
        queue = self._waiting.get(tenant)
        if queue is not None and place in queue:
            queue.remove(place)
            if not queue:
                del self._waiting[tenant]

    def _start_next(self) -> None:
        while self._running.total() < self._num_threads:
            tenants = [tenant for tenant in self._waiting if self._running[tenant] < self._max_running_each]
            if not tenants:
                return
            tenant = min(tenants, key=lambda tenant: self._used[tenant])
            size, turn = self._waiting[tenant].popleft()
            if not self._waiting[tenant]:
                del self._waiting[tenant]
            if not turn.done():
                self._floor = max(self._floor, self._used[tenant])
                self._used[tenant] += size
                self._owed[tenant] += size
                self._running[tenant] += 1
                turn.set_result(None)

    def _end(self, tenant: int) -> None:
        self._running[tenant] -= 1
        self._start_next()
