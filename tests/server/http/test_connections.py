"""server/http/connections.py: at the limit, idle connections are dropped and health is always answered."""

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import httpx
import psutil
import pytest

from server.http.connections import MAX_OPEN, OTHER_FILES, RESERVE, Connections, max_connections
from server.http.limits.read_limiter import ReadLimiter
from server.http.protocol import Connection
from tests.support.paths import FAKE_ENGINE_SERVER, ROOT
from tests.support.ports import free_port
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.raw_http import LEAVINGS, Leaving, RawClient, post_bytes, socket_to
from tests.support.servers.serving import MODEL, listening, outcomes, saying, state_around

pytestmark = pytest.mark.anyio

COMPLETION = {"model": MODEL, "prompt": "a", "max_tokens": 4}
HALF_A_HEAD = b"GET /health HTTP/1.1\r\nhost: x\r\n"
HALF_A_BODY = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
)
HEALTH = HALF_A_HEAD + b"\r\n"


class Closable:
    """A connection that records its end."""

    is_open = True

    def abort(self) -> None:
        self.is_open = False

    def finish(self) -> None:
        self.is_open = False


def open_ones(connections: Connections, count: int) -> list[Closable]:
    made = [Closable() for _ in range(count)]
    for connection in made:
        connections.opened(connection)
    return made


def test_the_longest_idle_connection_makes_room_for_a_new_one() -> None:
    connections = Connections(max_open=3, reserve=1)
    first, second, third = open_ones(connections, 3)
    connections.mark_busy(first)
    [fourth] = open_ones(connections, 1)
    assert [connection.is_open for connection in (first, second, third, fourth)] == [True, False, True, True]
    connections.mark_idle(third)  # another byte of the same request: it keeps its place
    connections.mark_idle(first)  # its response is complete: it is idle from now on
    open_ones(connections, 1)
    assert (first.is_open, third.is_open) == (True, False)
    assert len(connections) == 3 and not connections.is_full


def test_while_all_are_busy_a_few_more_are_accepted_and_the_next_is_closed() -> None:
    connections = Connections(max_open=2, reserve=2)
    for connection in open_ones(connections, 2):
        connections.mark_busy(connection)
    more = open_ones(connections, 5)
    assert [connection.is_open for connection in more] == [False, False, False, True, True]
    more = more[3:]
    for connection in more:
        connections.mark_busy(connection)
    assert connections.is_full
    assert [connection.is_open for connection in open_ones(connections, 3)] == [False] * 3
    connections.closed(more[0])
    connections.closed(more[0])
    assert len(connections) == 3


def test_the_number_of_connections_follows_from_the_limit_of_file_descriptors() -> None:
    assert max_connections(64) == 64 - OTHER_FILES - RESERVE
    assert max_connections(1024) == 1024 - OTHER_FILES - RESERVE
    assert max_connections(1 << 20) == MAX_OPEN
    assert max_connections(1) == 1


@contextlib.asynccontextmanager
async def clients(url: str, count: int, sent: bytes = b"") -> AsyncIterator[list[RawClient]]:
    """Open `count` connections and send the same bytes on each."""
    made = [await RawClient.connect(url) for _ in range(count)]
    for client in made:
        client.writer.write(sent)
    yield made
    for client in made:
        client.writer.transport.abort()


@pytest.mark.parametrize("sent", [b"", HALF_A_HEAD, HALF_A_BODY], ids=["nothing", "half a head", "half a body"])
async def test_idle_connections_never_keep_others_out(sent: bytes) -> None:
    connections = Connections(max_open=20)
    state = state_around(FakeEngine(saying("a")))
    async with asyncio.timeout(60), listening(state, connections=connections) as url, clients(url, 100, sent) as idle:
        async with httpx.AsyncClient(base_url=url) as client:
            for _ in range(3):
                assert (await client.get("/health")).status_code == 200
                assert (await client.post("/v1/completions", json=COMPLETION)).status_code == 200
        assert len(connections) <= 20
        with contextlib.suppress(ConnectionError):
            assert await idle[0].reader.read() == b""  # the oldest was dropped


async def test_while_all_connections_are_busy_only_health_and_metrics_are_answered() -> None:
    engine = FakeEngine(saying("a"), held=True)
    state = state_around(engine)
    connections = Connections(max_open=3, reserve=2)
    async with asyncio.timeout(60), listening(state, connections=connections) as url, clients(url, 3) as working:
        for client in working:
            client.post("/v1/completions", COMPLETION)
        await engine.until(lambda: len(engine.submitted) == 3)
        for path, status in (("/health", 200), ("/metrics", 200), ("/metrics/load", 200), ("/v1/models", 503)):
            async with httpx.AsyncClient(base_url=url) as client:
                answer = await client.get(path)
                assert answer.status_code == status
        assert answer.json()["error"]["code"] == "overloaded"
        assert 0 < int(answer.headers["retry-after"]) <= 120
        assert answer.headers["connection"] == "close"
        while engine.step():
            pass
        assert [(await client.answer()).status for client in working] == [200] * 3


async def test_short_connections_leave_no_descriptor_open(scale: int) -> None:
    connections = Connections()
    state = state_around(FakeEngine(saying("a")))
    async with asyncio.timeout(120), listening(state, connections=connections) as url:
        num_files = psutil.Process().num_fds()
        for _ in range(500 * scale):
            (await RawClient.connect(url)).writer.transport.abort()
        async with httpx.AsyncClient(base_url=url) as client:
            await client.get("/health")
            while len(connections) > 1:  # all but this client's
                await client.get("/health")
            while psutil.Process().num_fds() > num_files + 2:  # both ends of this client's connection
                await client.get("/health")


@pytest.mark.parametrize("how", LEAVINGS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_each_way_to_disconnect_aborts_the_work(how: Leaving, streamed: bool) -> None:
    engine = FakeEngine(saying("word " * 40), held=True)
    state = state_around(engine)
    connections = Connections()
    async with asyncio.timeout(60), listening(state, connections=connections) as url:
        client = await RawClient.connect(url)
        client.post("/v1/completions", {**COMPLETION, "max_tokens": 90, "stream": streamed, "n": 4})
        await engine.until(lambda: len(engine.submitted) == 4)
        engine.step()
        if streamed:
            await client.head()
        await client.leave(how)
        await engine.until(lambda: len(engine.aborted) == 4)
    assert outcomes(state) == {"received": 4, "abort": 4}
    assert len(connections) == 0


async def test_an_unread_response_does_not_keep_its_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The response is complete but larger than the buffers: a normal close would wait for the client."""
    monkeypatch.setattr(Connection, "stall_timeout_s", 0.05)
    engine = FakeEngine(lambda request: range(300, 600))
    state = state_around(engine)
    connections = Connections()
    async with asyncio.timeout(60), listening(state, send_buffer_bytes=4096, connections=connections) as url:
        client = await RawClient.connect(url, receive_bytes=4096)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.post(
            "/v1/completions", {**COMPLETION, "max_tokens": 250, "logprobs": 5, "n": 2}, {"connection": "close"}
        )
        await engine.until_played()
        async with httpx.AsyncClient(base_url=url) as other:
            await other.get("/health")
            while len(connections) > 1:
                await other.get("/health")
        client.writer.transport.abort()
    assert outcomes(state) == {"received": 2, "length": 2}


async def test_simultaneous_requests_are_all_answered_and_health_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one read per loop iteration, deferred connections are neither forgotten nor timed out."""
    state = state_around(FakeEngine(saying("a")))
    big = post_bytes("/v1/completions", {**COMPLETION, "prompt": "a " * 3000, "truncate_prompt_tokens": 5})
    async with asyncio.timeout(60), listening(state, read_limiter=ReadLimiter(max_reads=1)) as url:
        async with httpx.AsyncClient(base_url=url) as first:
            await first.get("/health")  # it listens now
        monkeypatch.setattr(Connection, "head_timeout_s", 0.2)
        sockets = [socket_to(url, sent) for sent in (*[big] * 199, HEALTH)]  # the big ones are several reads each
        health = await RawClient.over(sockets.pop())
        assert (await health.answer()).status == 200
        assert outcomes(state)["received"] < 190
        senders = [await RawClient.over(connected) for connected in sockets]
        assert [(await client.answer()).status for client in senders] == [200] * 199
        for client in (health, *senders):
            client.close()
    assert outcomes(state) == {"received": 199, "stop": 199}


# A process with 64 descriptors.

NUM_FILES = 64


@pytest.fixture
def scarce_server() -> Iterator[tuple[str, psutil.Process]]:
    """`smoe serve` with a fake engine and a limit of NUM_FILES descriptors."""
    port = free_port()
    command = [sys.executable, str(FAKE_ENGINE_SERVER), "count", f"port={port}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        stderr=subprocess.DEVNULL,
        env=environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (NUM_FILES, NUM_FILES)),
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        yield url, psutil.Process(process.pid)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


async def test_without_a_free_descriptor_health_is_answered_and_the_server_recovers(
    scarce_server: tuple[str, psutil.Process],
) -> None:
    url, process = scarce_server
    body = json.dumps({"model": "smoe-demo", "prompt": "a", "max_tokens": 3})
    async with asyncio.timeout(90), clients(url, 5 * NUM_FILES, HALF_A_HEAD):
        for _ in range(20):
            client = await RawClient.connect(url)
            client.writer.write(HEALTH)
            assert (await client.answer()).status == 200
            client.close()
        assert process.num_fds() <= NUM_FILES
    async with httpx.AsyncClient(base_url=url) as well:
        answer = await well.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 200


async def test_after_a_hand_over_each_connection_ends_with_its_response_and_none_loses_a_request() -> None:
    engine = FakeEngine(saying("a"), held=True)
    connections = Connections()
    async with asyncio.timeout(60), listening(state_around(engine), connections=connections) as url:
        silent, half, kept, running = [await RawClient.connect(url) for _ in range(4)]
        running.post("/v1/completions", {**COMPLETION, "stream": True})
        running.writer.write(b"\r\n")  # behind the body, as old clients send it: no part of a next request
        half.writer.write(HALF_A_HEAD)
        for _ in range(2):  # the second answer shows that the first connection's bytes were read, too
            kept.writer.write(HEALTH)
            assert (await kept.answer()).headers.get("connection") != "close"
        await engine.until(lambda: len(engine.submitted) == 1)
        connections.is_finishing = True
        connections.finish_idle()
        assert await silent.reader.read() == await kept.reader.read() == b""
        half.writer.write(b"\r\n")
        assert (await half.answer()).headers["connection"] == "close"
        while engine.step():
            pass
        assert (await running.answer()).is_done
        await connections.wait_none()
