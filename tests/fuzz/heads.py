"""Request heads and bodies at the connection's protocol, with an app that answers each request."""

import asyncio
import logging
import re
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from server.http.connections import Connections
from server.http.protocol import MAX_HEAD_BYTES, Connection

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
ALLOWED = {b"100", b"200", b"400", b"408", b"431"}
MAX_TURNS = 50


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self._is_closing = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    abort = close


logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # a warning for each bad request


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body and answer 200; say nothing to a client that leaves."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def check_heads(data: bytes) -> None:
    """The bytes get the same statuses however they are cut, none of them a 5xx, and nothing is left behind."""
    whole, cut = (asyncio.run(statuses_of(data, num_bytes)) for num_bytes in (len(data) or 1, 3))
    assert whole == cut, (whole, cut)
    assert set(whole) <= ALLOWED, whole


async def statuses_of(data: bytes, num_bytes: int) -> list[bytes]:
    """Return the statuses of the answers to `data`, sent in parts."""
    config = uvicorn.Config(
        app, http=Connection, log_config=None, lifespan="off", ws="none", h11_max_incomplete_event_size=MAX_HEAD_BYTES
    )
    config.load()
    state, transport = ServerState(), Transport()
    connection = Connection(config, state, {})
    connection.open_connections = Connections()
    connection.connection_made(transport)
    for start in range(0, len(data), num_bytes):
        if transport.is_closing():
            break
        connection.data_received(data[start : start + num_bytes])
        await settle(state)
    await settle(state)
    connection.connection_lost(None)
    await settle(state)
    assert not state.tasks and not state.connections and not len(connection.open_connections)
    return STATUS.findall(transport.written)


async def settle(state: ServerState) -> None:
    """Let the requests run as far as they can."""
    for _ in range(MAX_TURNS):
        await asyncio.sleep(0)
        if not state.tasks:
            return
