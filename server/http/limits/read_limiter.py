"""Limit the reads per iteration of the event loop, so that thousands of simultaneous requests do not block it."""

import asyncio
from collections.abc import Callable
from functools import partial

from server.fairness.tenant_queue import TenantQueue

MAX_READS = 4  # of 1 KiB each; handling a request that one of them completes takes 1-2 ms
MAX_BODY_READS = 16  # reads of bodies: about 50 us each


class ReadLimiter:
    """Allows `max_reads` reads per iteration of the event loop.

    Further reads wait, tenant by tenant, and those of a tenant in the order of their arrival.
    """

    def __init__(self, max_reads: int = MAX_READS) -> None:
        self._max_reads = max_reads
        self._deferred: TenantQueue[Callable[[], None]] = TenantQueue()
        self._num_reads = 0  # in this iteration

    def try_acquire(self) -> bool:
        """Return True if the caller may read now. If False, it should pass its read to `defer`."""
        if self._num_reads >= self._max_reads:
            return False
        self._acquire()
        return True

    def defer(self, read: Callable[[], None], tenant: int | None = None) -> None:
        """Call `read` in a later iteration. `tenant`: None if it is not known."""
        self._deferred.push(tenant, read)

    async def turn(self) -> None:
        """Return when the caller may do as much work as a read causes."""
        if not self.try_acquire():
            arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.defer(partial(resolve, arrived))
            await arrived

    def _acquire(self) -> None:
        if not self._num_reads:
            asyncio.get_running_loop().call_soon(self._next_iteration)
        self._num_reads += 1

    def _next_iteration(self) -> None:
        self._num_reads = 0
        while self._deferred and self._num_reads < self._max_reads:
            self._acquire()
            self._deferred.pop()()


def resolve(future: asyncio.Future[None]) -> None:
    """Set the result of a future that its task may have cancelled."""
    if not future.done():
        future.set_result(None)
