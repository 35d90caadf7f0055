"""Read request bodies before the app gets the request, within limits of size, time and memory."""

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, malformed_request, request_memory_full, request_timeout, request_too_large
from server.fairness.request_memory import RETRY_S, Lease, RequestMemory, parsed_bytes
from server.http.error_response import send_error

BODY_TIMEOUT_S = 30.0
# A body up to this many times the limit is read and discarded: closing a connection with unread bytes resets it, and
# the client would never see the 413.
DISCARD_FACTOR = 4
DISCARD_S = 2.0  # likewise for the rest of a body that is late, or for which there is no memory


class _Arriving:
    """The server's messages about a request. `is_complete`: nothing more of its body is to come."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.is_complete = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self.is_complete = not message.get("more_body", False)
        return message


class BodyLimit:
    """Reads the whole body, at most `max_bytes` within `timeout_s`, before the app gets the request.

    The app never gets a request whose client disconnects before the body is complete. A body holds a part of `memory`
    until its request has ended.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, memory: RequestMemory | None = None, timeout_s: float = BODY_TIMEOUT_S
    ) -> None:
        """`memory`: None sets no bound."""
        self._app = app
        self._max_bytes = max_bytes
        self._memory = memory or RequestMemory(2**62)
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        deadline = asyncio.timeout(self._timeout_s)
        lease = self._memory.open(scope.get("state", {}).get("tenant", 0), evict=lambda: _end_now(deadline))
        scope.setdefault("state", {})["lease"] = lease
        arriving = _Arriving(receive)
        try:
            body = await self._read(scope, arriving, lease, deadline)
        except TimeoutError:
            lease.close()
            await _discard_rest_of(arriving)
            is_short_of_memory = lease.is_evicted or lease.has_waited  # the client may have sent in time
            await send_error(scope, send, request_memory_full(RETRY_S) if is_short_of_memory else request_timeout())
        except ApiError as error:
            lease.close()
            if error.status == 503:
                await _discard_rest_of(arriving)
            await send_error(scope, send, error)
        else:
            if body is not None:
                await self._app(scope, _replay(body, receive), send)
        finally:
            lease.close()

    async def _read(self, scope: Scope, receive: Receive, lease: Lease, deadline: asyncio.Timeout) -> bytes | None:
        """Return the body; None if the client disconnected. Raises ApiError 400, 413 or 503, and TimeoutError."""
        self._check_declared(Headers(scope=scope))
        async with deadline:
            body = await self._read_all(receive, lease)
        lease.complete()
        if body:
            await lease.grow(min(parsed_bytes(body), self._memory.max_lease_bytes) - lease.num_bytes)
        return body

    def _check_declared(self, headers: Headers) -> None:
        """Reject a body that is far too long, or too long with `expect: 100-continue`, before it is read.

        Also rejects both length headers together: a proxy may split the bytes into other requests than this server.
        Raises ApiError 400 or 413.
        """
        if "content-length" in headers and "transfer-encoding" in headers:
            raise malformed_request()
        declared = headers.get("content-length", "")
        if not declared.isdecimal() or int(declared) <= self._max_bytes:
            return
        if int(declared) > DISCARD_FACTOR * self._max_bytes or "expect" in headers:
            raise request_too_large(self._max_bytes)

    async def _read_all(self, receive: Receive, lease: Lease) -> bytes | None:
        """Return the body; None if the client disconnected. Raises ApiError 413 for a longer one, 503 without memory.

        Nothing more is received while the memory is full, so the client's connection is not read.
        """
        body = bytearray()
        length = 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            more = message.get("more_body", False)
            length += len(chunk)
            if length <= self._max_bytes:
                await lease.grow(len(chunk))
                body += chunk
            elif length > DISCARD_FACTOR * self._max_bytes:
                break
        if length > self._max_bytes:
            raise request_too_large(self._max_bytes)
        return bytes(body)


def _end_now(deadline: asyncio.Timeout) -> None:
    """Let the block of `deadline` end with TimeoutError."""
    with contextlib.suppress(RuntimeError):  # it is ending already
        deadline.reschedule(asyncio.get_running_loop().time())


async def _discard_rest_of(arriving: _Arriving) -> None:
    if not arriving.is_complete:
        await discard_rest(arriving)


async def discard_rest(receive: Receive) -> None:
    """Read what is still to come of a body, for DISCARD_S: the client could not read the response otherwise."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            while (await receive()).get("more_body", False):
                pass


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that yields the body once and then the server's messages: the disconnect."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
