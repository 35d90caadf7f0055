"""Wait for a condition that another process or task brings about."""

import asyncio
import time
from collections.abc import Callable

LIMIT_S = 120.0
POLL_S = 0.005


async def until(condition: Callable[[], bool]) -> None:
    """Return as soon as the condition holds. Raises TimeoutError after a time that no sound run needs."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 (nothing in this process is told)
            await asyncio.sleep(POLL_S)


def wait_until(condition: Callable[[], bool], poll_s: float = POLL_S) -> None:
    """Return as soon as the condition holds, for tests without an event loop. Fails as `until` does."""
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError
        time.sleep(poll_s)
