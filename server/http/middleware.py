"""Middleware around the app: request ids, request metrics, API keys, CORS.

body_limit.py limits bodies, cross_site.py rejects pages of other sites. All of it is pure ASGI. A request that is
rejected here has cost no parsing and no engine work.
"""

import hmac
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import http_version_not_supported, invalid_api_key, is_anthropic
from server.fairness.request_memory import RequestMemory
from server.http.cross_site import HostCheck, OriginCheck
from server.http.error_response import send_error
from server.http.limits.body_limit import BodyLimit
from server.http.limits.upload_limit import UploadLimit
from server.observability.access_log import AccessLog, RequestRecord

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/ping"})
METRICS_PATHS = frozenset({"/metrics", "/metrics/load"})
MAX_REQUEST_ID_LENGTH = 128
TRACE_HEADERS = ("traceparent", "tracestate")  # W3C Trace Context


def with_middleware(
    app: ASGIApp,
    *,
    api_keys: Sequence[str],
    open_paths: frozenset[str],
    metrics_auth: bool,
    max_body_bytes: int,
    upload_paths: frozenset[str] = frozenset(),
    max_upload_bytes: int = 0,
    request_memory: RequestMemory | None = None,
    allowed_origins: Sequence[str],
    accepted_hosts: frozenset[str] | None = None,
    root_path: str,
    on_http: Callable[[str, str, int], None],
    access_log: AccessLog | None = None,
    outermost: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> ASGIApp:
    """Wrap the app in all middleware.

    `open_paths` need no API key, besides health and, without `metrics_auth`, metrics. `on_http` receives (route
    template, method, status) of each answered request. `accepted_hosts`: names that Host may have; None accepts all.
    `request_memory` bounds the bodies of all requests but uploads: POST requests of `upload_paths`, which the app reads
    piece by piece. `outermost` adds a middleware around those that can reject.
    """
    routes = _paths_of(app)
    limited = BodyLimit(app, max_body_bytes, request_memory)
    app = UploadLimit(app, limited, below(root_path, upload_paths), max_upload_bytes) if upload_paths else limited
    if api_keys:
        open_paths = OPEN_PATHS | open_paths | (frozenset() if metrics_auth else METRICS_PATHS)
        app = ApiKeys(app, api_keys, below(root_path, open_paths))
    if allowed_origins:
        app = CORSMiddleware(
            app,
            allow_origins=allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # only the origin is checked: clients send many headers of their own (x-stainless-...)
            expose_headers=[
                "x-request-id",
                "x-smoe-ignored-params",
                "x-smoe-repaired",
                "retry-after",
                "x-should-retry",
            ],
        )
    app = OriginCheck(app, allowed_origins)
    if accepted_hosts is not None:
        app = HostCheck(
            app,
            accepted_hosts,
            health_paths=below(root_path, OPEN_PATHS),
            metrics_paths=below(root_path, METRICS_PATHS),
        )
    counted = RequestMetrics(RootPath(HttpVersions(outermost(app)), root_path, routes), on_http)
    return RequestIds(counted, access_log or AccessLog(), with_prefix(OPEN_PATHS, root_path))


def for_batches(
    app: ASGIApp,
    *,
    max_body_bytes: int,
    request_memory: RequestMemory,
    on_http: Callable[[str, str, int], None],
    access_log: AccessLog | None = None,
) -> ASGIApp:
    """Wrap the app for requests of batches, which come from this process: they have a tenant, and no key."""
    counted = RequestMetrics(BodyLimit(app, max_body_bytes, request_memory), on_http)
    return RequestIds(counted, access_log or AccessLog())


def with_prefix(paths: frozenset[str], root_path: str) -> frozenset[str]:
    """Return the paths with and without the prefix that a proxy adds."""
    return frozenset(prefix + path for path in paths for prefix in ("", root_path))


def below(root_path: str, paths: frozenset[str]) -> frozenset[str]:
    """Return the paths as they are inside RootPath: all with the prefix."""
    return frozenset(root_path + path for path in paths)


def _paths_of(app: ASGIApp) -> frozenset[str]:
    """Return the path templates of the app's routes; FastAPI's own list lacks those of included routers."""
    routes: Any = getattr(getattr(app, "state", None), "routes", None) or getattr(app, "routes", ())
    return frozenset(route.path for route in routes if hasattr(route, "path"))


class RootPath:
    """Finds routes with and without the path prefix that a proxy adds.

    Sets the prefix, and a path that has it in front of the route's path, as ASGI wants them: whatever is inside removes
    it once. The prefix alone leads to the page below it, whose links need the slash.
    """

    def __init__(self, app: ASGIApp, root_path: str, routes: Iterable[str]) -> None:
        """`routes`: path templates of the app's routes."""
        self._app = app
        self._root_path = root_path
        self._fixed = frozenset(path for path in routes if "{" not in path)
        folders = {path.split("/", 2)[1] for path in routes if path.count("/") > 1}
        self._folders = tuple(f"/{name}/" for name in folders)
        self._begins_routes = any(f"{path}/".startswith(f"{root_path}/") for path in routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["root_path"] = self._root_path
        if self._root_path and scope["type"] == "http":
            path = self._without_prefix(scope["path"])
            if not path and scope["method"] in ("GET", "HEAD"):
                await RedirectResponse(self._root_path + "/")(scope, receive, send)
                return
            scope["path"] = self._root_path + (path or "/")
        await self._app(scope, receive, send)

    def _without_prefix(self, path: str) -> str:
        """Return the path below the prefix, or the whole path if it is meant without a prefix."""
        if not f"{path}/".startswith(f"{self._root_path}/"):
            return path
        inner = path[len(self._root_path) :]
        if not self._begins_routes:
            return inner
        # The prefix begins URLs of the server, as /api does: /api/version is Ollama's, or /version behind a proxy that
        # does not remove the prefix. Proxies usually remove it, so a path that is a route as a whole is that route.
        if path in self._fixed:
            return path
        is_below = not inner or inner in self._fixed or inner.startswith(self._folders)
        return inner if is_below else path


class RequestIds:
    """Sets `request_id` and `record` in `scope["state"]` of each request, and `x-request-id` in each response.

    Logs the record when the response has ended. Also sets `x-content-type-options: nosniff`: no browser may take a JSON
    response for a page or a script.
    """

    def __init__(self, app: ASGIApp, access_log: AccessLog, probes: frozenset[str] = frozenset()) -> None:
        """`probes`: paths of health checks, whose errors are not logged as such."""
        self._app = app
        self._access_log = access_log
        self._probes = probes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = Headers(scope=scope)
        request_id = valid_request_id(received.get("x-request-id")) or secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id
        client = scope.get("client")
        record = RequestRecord(request_id, scope["method"], scope["path"], client[0] if client else None)
        record.trace_headers = {name: received[name] for name in TRACE_HEADERS if name in received}
        scope["state"]["record"] = record
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
                if is_anthropic(scope):
                    headers["request-id"] = request_id  # read by Anthropic's clients
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            record.route = getattr(scope.get("route"), "path", None)
            self._access_log.request_ended(record, status, is_probe=record.path in self._probes)


def valid_request_id(sent: str | None) -> str | None:
    """Return the client's own id if it is safe in a header and in a log line, else None."""
    if sent and len(sent) <= MAX_REQUEST_ID_LENGTH and all("!" <= character <= "~" for character in sent):
        return sent
    return None


class HttpVersions:
    """Rejects requests of other HTTP versions than 1.0 and 1.1 with 505."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope.get("http_version", "1.1").startswith("1."):
            await send_error(scope, send, http_version_not_supported())
        else:
            await self._app(scope, receive, send)


class RequestMetrics:
    """Calls `on_http` for each answered request. Requests whose client disconnected before are not counted."""

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
    """Rejects requests without a valid API key, except for open paths, which must match exactly.

    Sets `scope["state"]["tenant"]` to the index of the key.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_paths: frozenset[str]) -> None:
        self._app = app
        self._expected = [key.encode() for key in keys]
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in self._open_paths:
            await self._app(scope, receive, send)
        elif (tenant := self._key_index(scope)) is not None:
            scope.setdefault("state", {})["tenant"] = tenant
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send_error(scope, send, invalid_api_key())

    def _key_index(self, scope: Scope) -> int | None:
        """Return the index of the request's key, or None. Compares all keys, so that the time reveals nothing."""
        sent = [_bearer_token(value) for name, value in scope["headers"] if name == b"authorization"]
        if not sent:  # Anthropic's header; llama.cpp takes it on all paths too
            sent = [value for name, value in scope["headers"] if name == b"x-api-key"]
        if len(sent) != 1:
            return None
        matches = [hmac.compare_digest(sent[0], expected) for expected in self._expected]
        return matches.index(True) if any(matches) else None


def _bearer_token(authorization: bytes) -> bytes:
    """Return the token of `Bearer TOKEN`, or b"". The scheme's case does not matter (RFC 9110, section 11.1)."""
    scheme, _, token = authorization.partition(b" ")
    return token.lstrip(b" ") if scheme.lower() == b"bearer" else b""
