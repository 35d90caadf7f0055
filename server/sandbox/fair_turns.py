"""Order of waiting jobs: the tenant that has used the least CPU time is next, its jobs in order of arrival."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable

from server.sandbox.errors import SandboxError, SandboxFull
from server.sandbox.worker_handle import WorkerHandle


class FairTurns:
    """Waiting jobs of several tenants. A tenant that comes back does not get the time it was away (virtual counters,
    as in the engine's queue)."""

    def __init__(self, max_waiting: int, max_waiting_per_tenant: int) -> None:
        self._max_waiting = max_waiting
        self._max_per_tenant = max_waiting_per_tenant
        self._waiting: dict[int, deque[asyncio.Future[WorkerHandle]]] = {}
        self._used_s: dict[int, float] = {}
        self._floor_s = 0.0  # of the last tenant that was next: what a newcomer starts with

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def join(self, tenant: int) -> asyncio.Future[WorkerHandle]:
        """Queue for a worker: the future's result. Raises SandboxFull."""
        queue = self._waiting.get(tenant)
        if len(self) >= self._max_waiting or len(queue or ()) >= self._max_per_tenant:
            raise SandboxFull("too many jobs wait")
        if queue is None:
            queue = self._waiting[tenant] = deque()
            self._used_s[tenant] = max(self._used_s.get(tenant, 0.0), self._floor_s)
        turn: asyncio.Future[WorkerHandle] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        return turn

    def leave(self, tenant: int, turn: asyncio.Future[WorkerHandle]) -> None:
        """Stop waiting."""
        queue = self._waiting.get(tenant, deque())
        if turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[tenant]

    def give_turn(self, worker: WorkerHandle, may_run: Callable[[int], bool]) -> int | None:
        """Give the worker to the next job and return its tenant; None if none waits whose tenant may run one more."""
        tenants = [tenant for tenant in self._waiting if may_run(tenant)]
        if not tenants:
            return None
        tenant = min(tenants, key=lambda tenant: (self._used_s[tenant], tenant))
        self._floor_s = max(self._floor_s, self._used_s[tenant])
        turn = self._waiting[tenant][0]
        self.leave(tenant, turn)
        if turn.done():  # cancelled, but still in the queue
            return self.give_turn(worker, may_run)
        turn.set_result(worker)
        return tenant

    def fail_all(self, reason: SandboxError) -> None:
        """End every wait with an error."""
        waiting, self._waiting = self._waiting, {}
        for turn in itertools.chain.from_iterable(waiting.values()):
            if not turn.done():
                turn.set_exception(reason)

    def charge(self, tenant: int, cpu_s: float) -> None:
        """Count CPU time that a tenant's job has used."""
        self._used_s[tenant] = self._used_s.get(tenant, self._floor_s) + cpu_s
