"""Memory of request bodies, from their first byte until their reply has ended: one pool, shared by all clients.

A body waits while the pool is full, in turns between tenants, and is refused if that takes too long. Bodies that stand
still make room for those that wait, so clients that send slowly cannot hold the pool.
"""

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from engine.config import max_slots_per_tenant
from server.errors import request_memory_full

SMALL_BYTES = 16 << 10  # a body of this size may use the part of the pool that is reserved for small ones
PAUSE_S = 5.0  # longest wait for room
CHECK_S = 0.25  # between two looks for bodies that stand still
IDLE_S = 2.0  # without a byte: the body stands still
RETRY_S = 5.0


class Lease:
    """Part of the pool that one request holds. Close it when the request has ended."""

    def __init__(self, memory: "RequestMemory", tenant: int, evict: Callable[[], None]) -> None:
        self.tenant = tenant
        self.num_bytes = 0
        self.changed_s = 0.0  # when it grew
        self.is_evicted = False
        self.has_waited = False  # for room, while its body was not read
        self.evict = evict  # ends the reading of the body
        self._memory = memory
        self._callbacks: list[Callable[[], None]] = []

    async def grow(self, num_bytes: int) -> None:
        """Add bytes; wait while the pool is full. Raises ApiError 503 after PAUSE_S."""
        if num_bytes > 0:
            await self._memory.grow(self, num_bytes)

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the request has ended."""
        self._callbacks.append(callback)

    def complete(self) -> None:
        """Record that the body has arrived: the lease is not evicted any more."""
        self._memory.complete(self)

    def close(self) -> None:
        """Give everything back. Idempotent."""
        self._memory.close(self)
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


@dataclass(frozen=True)
class _Waiting:
    """A lease that waits for room, in its tenant's queue."""

    lease: Lease
    num_bytes: int
    deadline_s: float
    granted: asyncio.Future[bool]  # False: it has waited too long


class RequestMemory:
    """Pool of bytes. All methods must be called on the event loop."""

    def __init__(self, limit_bytes: int, num_tenants: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: monotonic seconds."""
        self.used_bytes = 0
        self._num_tenants = num_tenants
        self.resize(limit_bytes)
        self._clock = clock
        self._used_by: dict[int, int] = {}  # by tenant
        self._reading: dict[Lease, None] = {}  # bodies that have not arrived completely
        self._waiting: dict[int, deque[_Waiting]] = {}  # by tenant; the first is next
        self._is_looking = False  # _look is scheduled

    def resize(self, limit_bytes: int) -> None:
        """Set the size. What is held beyond it stays until its requests end."""
        self.limit_bytes = limit_bytes
        self._large_bytes = max_slots_per_tenant(limit_bytes)  # for bodies that are not small
        self.max_lease_bytes = max(SMALL_BYTES, self._large_bytes // 2)
        self._max_per_tenant = max_slots_per_tenant(limit_bytes) if self._num_tenants > 1 else limit_bytes

    def open(self, tenant: int, evict: Callable[[], None] = lambda: None) -> Lease:
        """Return a lease without bytes. `evict` is called at most once, and only before complete()."""
        lease = Lease(self, tenant, evict)
        lease.changed_s = self._clock()
        self._reading[lease] = None
        return lease

    async def grow(self, lease: Lease, num_bytes: int) -> None:
        """See Lease.grow."""
        is_small = lease.num_bytes + num_bytes <= SMALL_BYTES
        if (is_small or not self._waiting) and self._fits(lease, num_bytes):
            self._add(lease, num_bytes)
            return
        lease.has_waited = True
        granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        place = _Waiting(lease, num_bytes, self._clock() + PAUSE_S, granted)
        self._waiting.setdefault(lease.tenant, deque()).append(place)
        self._grant()
        if not self._is_looking:
            self._look()
        try:
            has_room = await granted
        except asyncio.CancelledError:
            self._grant()  # others may have waited behind this one
            raise
        if not has_room:
            raise request_memory_full(RETRY_S)

    def complete(self, lease: Lease) -> None:
        """See Lease.complete."""
        self._reading.pop(lease, None)

    def close(self, lease: Lease) -> None:
        """See Lease.close."""
        self._reading.pop(lease, None)
        self.used_bytes -= lease.num_bytes
        self._used_by[lease.tenant] = self._used_by.get(lease.tenant, 0) - lease.num_bytes
        lease.num_bytes = 0
        self._grant()

    def evict_reading(self) -> None:
        """End all bodies that are still being read: the server is short of memory."""
        for lease in list(self._reading):
            self._evict(lease)

    def _fits(self, lease: Lease, num_bytes: int) -> bool:
        """Whatever is alone in the pool fits."""
        used = self.used_bytes - lease.num_bytes
        size = lease.num_bytes + num_bytes
        limit = self.limit_bytes if size <= SMALL_BYTES else self._large_bytes
        of_tenant = self._used_by.get(lease.tenant, 0) + num_bytes
        return used == 0 or (used + size <= limit and of_tenant <= self._max_per_tenant)

    def _add(self, lease: Lease, num_bytes: int) -> None:
        lease.num_bytes += num_bytes
        lease.changed_s = self._clock()
        self.used_bytes += num_bytes
        self._used_by[lease.tenant] = self._used_by.get(lease.tenant, 0) + num_bytes

    def _grant(self) -> None:
        """Serve those that wait, tenant by tenant, each tenant's in order of arrival."""
        progress = True
        while progress:
            progress = False
            for tenant in list(self._waiting):
                progress |= self._grant_next(tenant)

    def _grant_next(self, tenant: int) -> bool:
        """Serve the tenant's next one if it fits; return True if there may be another to serve."""
        queue = self._waiting[tenant]
        first = queue[0]
        if not first.granted.done():
            if not self._fits(first.lease, first.num_bytes):
                return False
            self._add(first.lease, first.num_bytes)
            first.granted.set_result(True)
        queue.popleft()
        if not queue:
            del self._waiting[tenant]
        return True

    def _look(self) -> None:
        """Refuse those that have waited too long, and make room for the others; again in CHECK_S while any waits.

        One look serves all that wait: its time grows with them and with the bodies that are read, not with both.
        """
        self._refuse_late()
        self._is_looking = bool(self._waiting)
        if self._is_looking:
            asyncio.get_running_loop().call_later(CHECK_S, self._look)
        self._evict_idle()

    def _refuse_late(self) -> None:
        now_s = self._clock()
        for place in [*itertools.chain.from_iterable(self._waiting.values())]:
            if place.deadline_s <= now_s and not place.granted.done():
                place.granted.set_result(False)
                self._grant()  # others may have waited behind this one

    def _evict_idle(self) -> None:
        """End bodies that have stood still for IDLE_S, at most one for each that waits: first those of the tenant that
        holds most, of these the ones that have stood still for longest."""
        idle_s = self._clock() - IDLE_S
        waits = {place.lease for queue in self._waiting.values() for place in queue if not place.granted.done()}
        idle = [
            lease for lease in self._reading if lease.changed_s <= idle_s and lease not in waits and lease.num_bytes
        ]
        for lease in heapq.nsmallest(len(waits), idle, key=lambda one: (-self._used_by[one.tenant], one.changed_s)):
            self._evict(lease)

    def _evict(self, lease: Lease) -> None:
        self._reading.pop(lease, None)
        lease.is_evicted = True
        lease.evict()


def parsed_bytes(body: bytes) -> int:
    """Estimate the memory of what is parsed from a JSON body, with the validated request, from above.

    Measured: a message 1 KiB, another object 0.6 KiB, a list 0.1 KiB, a number or a short text 64 bytes.
    """
    return 600 * body.count(b"{") + 100 * body.count(b"[") + 64 * body.count(b",") + 2 * len(body)
