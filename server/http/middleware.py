"""What stands before the app: request ids, HTTP counts, API keys, the size and the pace of bodies.

Pure ASGI middleware, outermost first in `guarded`. A refusal here has cost no parsing and no engine work.
"""

import asyncio
import hmac
import secrets
from collections.abc import Callable, Sequence

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api import playground_files
from server.errors import (
    ApiError,
    error_body,
    invalid_api_key,
    is_anthropic,
    malformed_request,
    request_timeout,
    request_too_large,
)

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/ping"})
BODY_TIMEOUT_S = 30.0
MAX_REQUEST_ID_LENGTH = 128
# A refused body up to this many times the limit is read and thrown away: a close with unread bytes resets the
# connection, and the client would never see the 413.
DISCARD_FACTOR = 4


def with_middleware(
    app: ASGIApp,
    *,
    api_keys: Sequence[str],
    metrics_auth: bool,
    max_body_bytes: int,
    allowed_origins: Sequence[str],
    root_path: str,
    on_http: Callable[[str, str, int], None],
    outermost: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> ASGIApp:
    """The app behind all its guards. `on_http` is told (route template, method, status) of each request; `outermost`
    makes a guard of its own before the others."""
    app = BodyLimit(app, max_body_bytes)
    if api_keys:
        open_paths = OPEN_PATHS | playground_files.open_paths() | (set() if metrics_auth else {"/metrics"})
        app = ApiKeys(app, api_keys, open_paths, root_path)
    if allowed_origins:
        app = CORSMiddleware(
            app,
            allow_origins=allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # the origin is what is checked; clients' own headers (x-stainless-...) are many
            expose_headers=[
                "x-request-id",
                "x-smoe-ignored-params",
                "x-smoe-repaired",
                "retry-after",
                "x-should-retry",
            ],
        )
    return RootPath(RequestIds(RequestMetrics(outermost(app), on_http)), root_path)


class RootPath:
    """Tells the app the prefix that a proxy adds. Requests are found with it in front of their path and without it."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["root_path"] = self._root_path
        await self._app(scope, receive, send)


class RequestIds:
    """Gives each request an id, `scope["state"]["request_id"]`, and each reply the header `x-request-id`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = sane_request_id(Headers(scope=scope).get("x-request-id")) or secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if is_anthropic(scope):
                    headers["request-id"] = request_id  # where Anthropic's clients look for it
            await send(message)

        await self._app(scope, receive, send_with_id)


def sane_request_id(sent: str | None) -> str | None:
    """The client's own id where it is fit for a header and a log line, else None."""
    if sent and len(sent) <= MAX_REQUEST_ID_LENGTH and all("!" <= character <= "~" for character in sent):
        return sent
    return None


class RequestMetrics:
    """Tells `on_http` how each request ended. A request whose client left before an answer is not one."""

    def __init__(self, app: ASGIApp, on_http: Callable[[str, str, int], None]) -> None:
        self._app = app
        self._on_http = on_http

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._on_http(route, scope["method"], message["status"])
            await send(message)

        await self._app(scope, receive, send_and_count)


class ApiKeys:
    """Lets a request through where it has one of the keys, or asks for an open path spelled exactly so.

    `scope["state"]["tenant"]` tells whose it is: the key's place among the keys.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_paths: frozenset[str], root_path: str) -> None:
        self._app = app
        self._expected = [b"Bearer " + key.encode() for key in keys]
        self._open_paths = {prefix + path for path in open_paths for prefix in ("", root_path)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in self._open_paths:
            await self._app(scope, receive, send)
        elif (tenant := self._owner(scope)) is not None:
            scope.setdefault("state", {})["tenant"] = tenant
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send_error(scope, send, invalid_api_key())

    def _owner(self, scope: Scope) -> int | None:
        """Which key it is, if any. Every key is compared, whichever fits: the time taken tells nothing."""
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        if not sent and is_anthropic(scope):
            sent = [b"Bearer " + value for name, value in scope["headers"] if name == b"x-api-key"]
        if len(sent) != 1:
            return None
        fits = [hmac.compare_digest(sent[0], expected) for expected in self._expected]
        return fits.index(True) if any(fits) else None


class BodyLimit:
    """Reads the whole body, at most `max_bytes` within `timeout_s`, before the app sees the request.

    A client that leaves before its body is complete never reaches the app.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float = BODY_TIMEOUT_S) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_declared(Headers(scope=scope))
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(receive)
        except TimeoutError:
            await send_error(scope, send, request_timeout())
        except ApiError as error:
            await send_error(scope, send, error)
        else:
            if body is not None:
                await self._app(scope, _replay(body, receive), send)

    def _check_declared(self, headers: Headers) -> None:
        """Refuse unread what is far too long, what waits for a 100-continue, and what a proxy may cut elsewhere than we
        do: with both headers two requests can hide in one."""
        if "content-length" in headers and "transfer-encoding" in headers:
            raise malformed_request()
        declared = headers.get("content-length", "")
        if not declared.isdecimal() or int(declared) <= self._max_bytes:
            return
        if int(declared) > DISCARD_FACTOR * self._max_bytes or "expect" in headers:
            raise request_too_large(self._max_bytes)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None where the client left. Raises ApiError 413 for a longer one."""
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
                body += chunk
            elif length > DISCARD_FACTOR * self._max_bytes:
                break
        if length > self._max_bytes:
            raise request_too_large(self._max_bytes)
        return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body once, then what the server has: the disconnect."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


async def send_error(scope: Scope, send: Send, error: ApiError) -> None:
    """The error as a whole reply, for places outside the app."""
    body = orjson.dumps(error_body(error, scope))
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw_headers})
    await send({"type": "http.response.body", "body": body})
