"""Health checks over HTTP, and nothing else: /health/live and /health/ready, for a process without an API."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from http import HTTPStatus

from server.engine_client.status import EngineStatus
from server.observability.health import liveness, readiness

HEAD_TIMEOUT_S = 5.0
MAX_HEAD_BYTES = 1 << 13
PATHS = {"/health/live": liveness, "/health/ready": readiness, "/health": readiness}


class HealthPage:
    """Answers one GET or HEAD on each connection from the last known status."""

    def __init__(self, status: Callable[[], EngineStatus]) -> None:
        self._status = status
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Accept connections at `listener`, which listens, and which stop() closes."""
        self._server = await asyncio.start_server(self._answer, sock=listener, limit=MAX_HEAD_BYTES)

    async def stop(self) -> None:
        """Close the listener."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_TIMEOUT_S)
            writer.write(self._reply(head))
            await asyncio.wait_for(writer.drain(), HEAD_TIMEOUT_S)
        writer.close()

    def _reply(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        check = PATHS.get(rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1"))
        if method not in (b"GET", b"HEAD"):
            status, body = 405, b""
        elif check is None:
            status, body = 404, b""
        else:
            status, fields = check(self._status())
            body = json.dumps(fields).encode()
        lines = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        )
        return "\r\n".join((*lines, "", "")).encode() + (body if method == b"GET" else b"")
