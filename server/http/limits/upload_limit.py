"""Bodies of uploads, which the app reads piece by piece: within limits of size and time, whatever the memory."""

import asyncio
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import malformed_request, request_timeout, request_too_large
from server.http.error_response import send_error
from server.http.limits.body_limit import BODY_TIMEOUT_S, discard_rest

UPLOAD_TIMEOUT_S = 900.0  # for a whole upload; between two pieces BODY_TIMEOUT_S


class UploadLimit:
    """Gives POST requests of `paths` to an app that reads their bodies itself, and all others to another app.

    That app gets at most `max_bytes` of a body. What it leaves unread when it answers is read and discarded for a
    while, so that the client can read the answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        other: ASGIApp,
        paths: frozenset[str],
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: monotonic seconds."""
        self._app = app
        self._other = other
        self._paths = paths
        self._max_bytes = max_bytes
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self._paths:
            await self._other(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        if "content-length" in headers and "transfer-encoding" in headers:
            await send_error(scope, send, malformed_request())
        elif declared.isdecimal() and int(declared) > self._max_bytes:
            if "expect" not in headers:
                await discard_rest(receive)
            await send_error(scope, send, request_too_large(self._max_bytes))
        else:
            body = _Body(receive, send, self._max_bytes, self._clock)
            await self._app(scope, body.receive, body.send)


class _Body:
    """The body of one upload."""

    def __init__(self, receive: Receive, send: Send, max_bytes: int, clock: Callable[[], float]) -> None:
        self._receive = receive
        self._send = send
        self._bytes_left = max_bytes
        self._max_bytes = max_bytes
        self._clock = clock
        self._deadline_s = clock() + UPLOAD_TIMEOUT_S
        self._is_complete = False

    async def receive(self) -> Message:
        """Return the next message. Raises ApiError 408 for a body that is late, 413 for one that is too long."""
        if self._is_complete:
            return await self._receive()
        left_s = min(BODY_TIMEOUT_S, self._deadline_s - self._clock())
        if left_s <= 0:
            raise request_timeout()
        try:
            async with asyncio.timeout(left_s):
                message = await self._receive()
        except TimeoutError:
            raise request_timeout() from None
        self._is_complete = not message.get("more_body", False)
        self._bytes_left -= len(message.get("body", b""))
        if self._bytes_left < 0:
            raise request_too_large(self._max_bytes)
        return message

    async def send(self, message: Message) -> None:
        """Send a message; the first one after what is still to come of the body."""
        if not self._is_complete:
            self._is_complete = True
            await discard_rest(self._receive)
        await self._send(message)
