"""Turns for long work on the event loop: one slice in each iteration of the loop, tenant by tenant."""

import asyncio

from server.fairness.tenant_queue import TenantQueue


class LoopTurns:
    """Gives one turn in each iteration of the event loop.

    Work that takes long is cut into slices of a few milliseconds, and waits for a turn before each one. So the loop is
    never busy with two slices in one iteration, and tenants get turns one after the other, however many slices each
    has. All methods must be called on the event loop.
    """

    def __init__(self) -> None:
        self._waiting: TenantQueue[asyncio.Future[None]] = TenantQueue()
        self._is_taken = False  # in this iteration of the loop

    async def next(self, tenant: int) -> None:
        """Wait for a turn. Returns at once if nobody has or waits for one."""
        if not self._is_taken and not self._waiting:
            self._take()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.push(tenant, turn)
        await turn  # a cancelled turn is skipped

    def _take(self) -> None:
        self._is_taken = True
        asyncio.get_running_loop().call_soon(self._release)

    def _release(self) -> None:
        self._is_taken = False
        while self._waiting and not self._is_taken:
            turn = self._waiting.pop()
            if not turn.done():
                self._take()
                turn.set_result(None)
