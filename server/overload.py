"""What is not taken on while the server holds all it can: too many connections, or too little memory. And who comes at
the same moment as thousands takes turns with them."""

import asyncio
from collections import deque

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.connections import Connections
from server.errors import overloaded
from server.limits import OPEN_PATHS, send_error
from server.memory_watch import MemoryWatch

RETRY_S = 5.0
PER_TURN = 16  # a request costs a millisecond or two until it is with the engine or refused
ALWAYS_ANSWERED = OPEN_PATHS | {"/metrics"}


class Overload:
    """Pure ASGI middleware. With more connections than may be, only health and metrics are answered; while memory is
    short, no connection is kept for a further request."""

    def __init__(self, app: ASGIApp, connections: Connections, memory: MemoryWatch | None) -> None:
        self._app = app
        self._connections = connections
        self._memory = memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._connections.is_full and scope["path"] not in ALWAYS_ANSWERED:
            await send_error(scope, send, overloaded(RETRY_S, close=True))
        elif self._memory is not None and self._memory.level != "normal":
            await self._app(scope, receive, _closing(send))
        else:
            await self._app(scope, receive, send)


class Turns:
    """Pure ASGI middleware. Of the requests that are there at once, so many begin in each turn of the event loop: a
    crowd then never holds the loop for longer than these few take, and health is asked in between. First come, first
    served; health and metrics do not queue."""

    def __init__(self, app: ASGIApp, per_turn: int = PER_TURN) -> None:
        self._app = app
        self._per_turn = per_turn
        self._queue: deque[asyncio.Future[None]] = deque()
        self._num_begun = 0  # in this turn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in ALWAYS_ANSWERED:
            await self._turn()
        await self._app(scope, receive, send)

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._num_begun:
            loop.call_soon(self._next_turn, loop)
        if self._num_begun < self._per_turn:
            self._num_begun += 1
            return
        waits = loop.create_future()
        self._queue.append(waits)
        await waits

    def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._num_begun = 0
        while self._queue and self._num_begun < self._per_turn:
            waits = self._queue.popleft()
            if not waits.done():  # its task may have been cancelled
                waits.set_result(None)
                self._num_begun += 1
        if self._num_begun:
            loop.call_soon(self._next_turn, loop)


def _closing(send: Send) -> Send:
    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["connection"] = "close"
        await send(message)

    return send_and_close
