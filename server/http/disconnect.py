"""Cancel the work for a request when its client disconnects: queued, in prefill, in decode, streaming or not."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientDisconnected(Exception):
    """The client closed the connection before it had the complete response."""


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or cancel it if the client disconnects first.

    Call it after the whole request body was read: from then on `receive` yields only the disconnect. Raises
    ClientDisconnected, after the cancelled `work` has cleaned up.
    """
    disconnect = asyncio.create_task(_wait_disconnected(receive))
    job = asyncio.create_task(work)
    try:
        await asyncio.wait({disconnect, job}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientDisconnected
        return job.result()
    finally:
        disconnect.cancel()
        job.cancel()
        await asyncio.gather(disconnect, job, return_exceptions=True)


async def _wait_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
