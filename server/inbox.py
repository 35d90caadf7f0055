"""The outputs of several requests as one stream."""

import asyncio
from collections.abc import Sequence

from engine.types import RequestOutput
from server.state import Inbox


class MergedInbox:
    """Reads all inboxes at once. A lagging reader costs no memory here: outputs wait, merged, where they came from."""

    def __init__(self, inboxes: Sequence[Inbox]) -> None:
        """One or more. Needs a running event loop, and `close` at the end."""
        self._inboxes = inboxes
        self._queue: asyncio.Queue[list[RequestOutput] | Exception] = asyncio.Queue(maxsize=len(inboxes))
        several = inboxes if len(inboxes) > 1 else []
        self._pumps = [asyncio.create_task(self._pump(inbox)) for inbox in several]

    async def get(self, until_s: float) -> list[RequestOutput]:
        """What has come, at least one output; nothing where nothing came until `until_s` on the loop's clock.

        Raises what an inbox raised.
        """
        try:
            async with asyncio.timeout_at(until_s):
                return await (self._merged() if self._pumps else self._inboxes[0].get())
        except TimeoutError:
            return []

    def close(self) -> None:
        """Stop reading."""
        for pump in self._pumps:
            pump.cancel()

    async def _merged(self) -> list[RequestOutput]:
        outputs = _or_raise(await self._queue.get())
        while not self._queue.empty():
            outputs = outputs + _or_raise(self._queue.get_nowait())
        return outputs

    async def _pump(self, inbox: Inbox) -> None:
        is_open = True
        while is_open:
            try:
                outputs = await inbox.get()
            except Exception as error:  # noqa: BLE001 (raised again in `get`, where it is waited for)
                await self._queue.put(error)
                return
            is_open = outputs[-1].finish_reason is None
            await self._queue.put(outputs)


def _or_raise(item: list[RequestOutput] | Exception) -> list[RequestOutput]:
    if isinstance(item, Exception):
        raise item
    return item
