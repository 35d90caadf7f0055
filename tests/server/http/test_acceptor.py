"""server/http/acceptor.py: connections count from their accept on, before and without a TLS handshake."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import Any

import httpx
import psutil
import pytest

from server.http.acceptor import UNSENT_BYTES, Acceptor
from server.http.connections import Connections
from server.http.limits.read_limiter import ReadLimiter
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.raw_http import RawClient
from tests.support.servers.serving import MODEL, listening, saying, state_around
from tests.support.tls import TlsClient, client_context, client_hello, split_into_records

pytestmark = pytest.mark.anyio

COMPLETION = {"model": MODEL, "prompt": "a", "max_tokens": 4}


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


def https(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url.replace("127.0.0.1", "localhost"), verify=client_context(), timeout=60)


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until the condition is true."""
    while not condition():  # noqa: ASYNC110 (nothing announces it)
        await asyncio.sleep(0)


async def test_the_system_takes_little_for_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes in its buffers were rendered for nothing, and are memory of the server's cgroup."""
    begun: list[socket.socket] = []
    begin = Acceptor._begin

    def noted(self: Acceptor, connected: socket.socket) -> None:
        begin(self, connected)
        begun.append(connected)

    monkeypatch.setattr(Acceptor, "_begin", noted)
    async with asyncio.timeout(60), listening(state_around(FakeEngine(saying("a")))) as url:
        client = await RawClient.connect(url)
        await until(lambda: bool(begun))
        num_taken = 0
        with contextlib.suppress(BlockingIOError):
            while num_taken < 8 * UNSENT_BYTES:
                num_taken += os.write(begun[0].fileno(), b"x" * 4096)
        client.close()
    assert num_taken < 8 * UNSENT_BYTES


@pytest.mark.parametrize("num_bytes", [0, 3, 100])
async def test_unfinished_handshakes_count_and_never_keep_others_out(num_bytes: int) -> None:
    connections = Connections(max_open=20)
    state = state_around(FakeEngine(saying("a")))
    async with asyncio.timeout(60), listening(state, connections=connections, tls=True) as url:
        clients = [await RawClient.connect(url) for _ in range(60)]
        for client in clients:
            client.writer.write(client_hello()[:num_bytes])
        async with https(url) as other:
            assert (await other.get("/health")).status_code == 200
            assert (await other.post("/v1/completions", json=COMPLETION)).status_code == 200
        assert 0 < len(connections) <= 20
        with contextlib.suppress(ConnectionError):
            assert await clients[0].reader.read() == b""  # the oldest was dropped
        for client in clients:
            client.close()


async def test_while_all_connections_are_busy_health_is_answered_over_tls_and_the_rest_gets_503() -> None:
    engine = FakeEngine(saying("a"), held=True)
    async with (
        asyncio.timeout(60),
        listening(state_around(engine), connections=Connections(max_open=2, reserve=2), tls=True) as url,
        https(url) as busy,
    ):
        running = [asyncio.create_task(busy.post("/v1/completions", json=COMPLETION)) for _ in range(2)]
        await engine.until(lambda: len(engine.submitted) == 2)
        silent = [await RawClient.connect(url) for _ in range(20)]  # they never send a hello
        for path, status in (("/health", 200), ("/v1/models", 503)):
            async with https(url) as client:
                assert (await client.get(path)).status_code == status
        while engine.step():
            pass
        assert [(await reply).status_code for reply in running] == [200, 200]
        for client in silent:
            client.close()


async def test_a_handshake_that_takes_too_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = Connections()
    monkeypatch.setattr(Acceptor, "handshake_timeout_s", 0.05)
    state = state_around(FakeEngine(saying("a")))
    async with asyncio.timeout(60), listening(state, connections=connections, tls=True) as url:
        num_files = None
        for sent in (b"", client_hello()[:50], client_hello()):
            client = await RawClient.connect(url)
            client.writer.write(sent)
            with contextlib.suppress(ConnectionError):
                while await client.reader.read(1 << 16):
                    pass  # the server's part of the handshake
            client.close()
            await until(lambda: not len(connections))
            if num_files is None:
                num_files = psutil.Process().num_fds()  # uvloop opens one of its own with the first connection
        await until(lambda: psutil.Process().num_fds() <= num_files)


@pytest.mark.parametrize("record_bytes", [1, 40])
async def test_a_hello_split_across_records_and_segments_is_accepted(record_bytes: int) -> None:
    state = state_around(FakeEngine(saying("a")))
    tls = TlsClient()
    async with asyncio.timeout(60), listening(state, tls=True) as url:
        client = await RawClient.connect(url)
        hello = split_into_records(tls.shake_hands()[0], record_bytes)
        for start in range(0, len(hello), 64):
            client.writer.write(hello[start : start + 64])
            await client.writer.drain()
            await asyncio.sleep(0)
        is_complete = False
        while not is_complete:
            received = await client.reader.read(1 << 16)
            assert received
            answer, is_complete = tls.shake_hands(received)
            client.writer.write(answer)
        client.close()


async def test_handshakes_wait_for_their_turn() -> None:
    """A flood of handshakes would block the event loop: each takes about as long as a request."""

    class HeldLimiter(ReadLimiter):
        def try_acquire(self) -> bool:
            return False

        def defer(self, read: Any, tenant: int | None = None) -> None:
            deferred.append(read)
            arrived.set()

    deferred: list[Any] = []
    arrived = asyncio.Event()
    state = state_around(FakeEngine(saying("a")))
    async with asyncio.timeout(60), listening(state, tls=True, read_limiter=HeldLimiter()) as url, https(url) as client:
        reply = asyncio.create_task(client.get("/health"))
        await arrived.wait()
        assert len(deferred) == 1  # the hello has arrived, and nothing was computed for it
        deferred[0]()
        assert (await reply).status_code == 200


async def test_a_client_without_tls_is_refused_and_forgotten() -> None:
    connections = Connections()
    state = state_around(FakeEngine(saying("a")))
    async with asyncio.timeout(60), listening(state, connections=connections, tls=True) as url:
        client = await RawClient.connect(url)
        client.writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"HTTP/1.1" not in await client.reader.read()
        await until(lambda: not len(connections))
        client.close()


async def test_without_a_free_descriptor_accepting_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.http.acceptor.RETRY_S", 0.0)

    class Exhausted(socket.socket):
        num_failures = 3

        def accept(self) -> tuple[socket.socket, Any]:
            self.num_failures -= 1
            if self.num_failures >= 0:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            accepted.set()
            raise BlockingIOError

    accepted = asyncio.Event()
    with Exhausted() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        acceptor = Acceptor(listener, lambda: pytest.fail("nothing was accepted"), ReadLimiter(), None)
        acceptor.start()
        with socket.create_connection(listener.getsockname()):
            async with asyncio.timeout(60):
                await accepted.wait()
        acceptor.stop()


async def test_small_responses_are_sent_at_once() -> None:
    """Nagle's algorithm would hold back the second event of a stream until the first is acknowledged."""
    no_delay: list[int] = []

    class Watching(Acceptor):
        def _on_opened(self, connected: socket.socket, *rest: Any) -> None:
            no_delay.append(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            super()._on_opened(connected, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.http.uvicorn_server.Acceptor", Watching)
        for tls in (False, True):
            state = state_around(FakeEngine(saying("a")))
            async with asyncio.timeout(60), listening(state, tls=tls) as url, https(url) as client:
                assert (await client.get("/health")).status_code == 200
    assert no_delay == [1, 1]
