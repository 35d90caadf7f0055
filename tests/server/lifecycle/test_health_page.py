"""Health checks of a host without an API: one answer from the last status on each connection, whatever is sent."""

import asyncio
import contextlib
import json
import socket
import tempfile
from pathlib import Path

import pytest
import uvloop

from server.engine_client.status import EngineStatus
from server.http.listener import listen, listen_unix
from server.lifecycle.health_page import MAX_HEAD_BYTES, HealthPage

READY, LOADING, DEAD = EngineStatus("ready"), EngineStatus("loading", "other ranks"), EngineStatus("dead")


async def _ask(status: EngineStatus, sent: bytes, path: str = "") -> bytes:
    """Return the answer at a free port, or at a Unix socket at `path`."""
    page = HealthPage(lambda: status)
    with listen_unix(Path(path)) if path else listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        await page.start(listener)
        connected = asyncio.open_unix_connection(path) if path else asyncio.open_connection(*address)
        reader, writer = await connected
        reply = b""
        with contextlib.suppress(ConnectionError):  # too long a head is not read to its end
            writer.write(sent)
            writer.write_eof()
            reply = await reader.read()
        writer.close()
        await page.stop()
    return reply


@pytest.mark.parametrize(
    ("status", "path", "code", "phase"),
    [
        (READY, "/health/live", 200, "ready"),
        (READY, "/health/ready?a=1", 200, "ready"),
        (READY, "/health", 200, "ready"),
        (LOADING, "/health/live", 200, "loading"),
        (LOADING, "/health/ready", 503, "loading"),
        (DEAD, "/health/live", 503, "dead"),
    ],
)
def test_a_check_tells_the_last_status(status: EngineStatus, path: str, code: int, phase: str) -> None:
    reply = asyncio.run(_ask(status, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()))
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {code} ".encode())
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body)["phase"] == phase


@pytest.mark.parametrize(
    ("sent", "start"),
    [
        (b"GET /v1/models HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 Not Found\r\n"),
        (b"POST /health HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 Method Not Allowed\r\n"),
        (b"HEAD /health HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n"),
        (b"\r\n\r\n", b"HTTP/1.1 405 "),
        (b"GET /health", b""),
        (b"", b""),
        (b"GET /" + b"a" * 2 * MAX_HEAD_BYTES, b""),
    ],
)
def test_other_requests_get_an_error_or_nothing(sent: bytes, start: bytes) -> None:
    reply = asyncio.run(_ask(READY, sent))
    assert reply.startswith(start) and bool(reply) == bool(start)
    assert reply.endswith(b"\r\n\r\n") or not reply


def test_a_client_that_sends_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.lifecycle.health_page.HEAD_TIMEOUT_S", 0.01)

    async def connect() -> bytes:
        page = HealthPage(lambda: READY)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
            await page.start(listener)
            reader, writer = await asyncio.open_connection(*address)
            reply = await reader.read()
            writer.close()
            await page.stop()
        return reply

    assert asyncio.run(connect()) == b""


def test_a_check_is_answered_at_a_unix_socket() -> None:
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        reply = runner.run(_ask(READY, b"GET /health HTTP/1.1\r\n\r\n", f"{folder}/a.sock"))
    assert reply.startswith(b"HTTP/1.1 200 ")
