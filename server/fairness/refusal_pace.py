"""Pace of refusals: a key that sends again at once, without waiting for Retry-After, gets its 429s later.

A refusal costs about a millisecond of the event loop. A few connections that repeat refused requests without a pause
would use up a core, of which other keys and the engine would get less.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

FREE_PER_S = 16  # refusals of a key that are sent at once
DELAY_S = 0.25  # of the others


class RefusalPace:
    """Delays refusals. They wait side by side, so that none waits longer than DELAY_S."""

    def __init__(
        self,
        num_tenants: int = 1,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`num_tenants`: with one, nothing is delayed. `clock`: monotonic seconds."""
        self._num_tenants = num_tenants
        self._clock = clock
        self._sleep = sleep
        self._windows: dict[int, tuple[float, int]] = {}  # by tenant: start of a second, refusals since then

    async def wait(self, tenant: int) -> None:
        """Wait until a refusal of the tenant may be sent."""
        if self._num_tenants > 1 and self._count(tenant) > FREE_PER_S:
            await self._sleep(DELAY_S)

    def _count(self, tenant: int) -> int:
        """Count a refusal and return the tenant's number in this second."""
        now_s = self._clock()
        start_s, count = self._windows.get(tenant, (now_s, 0))
        if now_s - start_s >= 1.0:
            start_s, count = now_s, 0
        self._windows[tenant] = start_s, count + 1
        return count + 1
