"""Reject requests when too many connections are open, and close connections when memory is short."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import overloaded
from server.http.connections import Connections
from server.http.error_response import send_error
from server.http.middleware import METRICS_PATHS, OPEN_PATHS, with_prefix
from server.observability.memory_pressure import MemoryMonitor

RETRY_S = 5.0
ALWAYS_ANSWERED = OPEN_PATHS | METRICS_PATHS


class LoadShedding:
    """Pure ASGI middleware that sheds load.

    With more connections than the limit it answers only health and metrics, everything else with 503. While memory is
    short, and after another process has taken over, it closes each connection after its response.
    """

    def __init__(
        self, app: ASGIApp, connections: Connections, memory: MemoryMonitor | None, root_path: str = ""
    ) -> None:
        """`root_path`: the prefix that a proxy may add to paths."""
        self._app = app
        self._connections = connections
        self._memory = memory
        self._always_answered = with_prefix(ALWAYS_ANSWERED, root_path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._connections.is_full and scope["path"] not in self._always_answered:
            await send_error(scope, send, overloaded(RETRY_S, close=True))
        elif self._connections.is_finishing or (self._memory is not None and self._memory.level != "normal"):
            await self._app(scope, receive, _closing(send))
        else:
            await self._app(scope, receive, send)


def _closing(send: Send) -> Send:
    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["connection"] = "close"
        await send(message)

    return send_and_close
