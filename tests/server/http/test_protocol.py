"""server/http/protocol.py: invalid, slow and tiny input, and clients that do not read."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from typing import Any

import h11
import pytest
import uvicorn
from uvicorn.server import ServerState

from server.http.bounded_reads import READ_BYTES
from server.http.limits.header_lines import MAX_HEADER_LINES
from server.http.protocol import MAX_HEAD_BYTES, Connection
from tests.support.conditions import until
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.raw_http import socket_to
from tests.support.servers.serving import MODEL, http_counts, listening, outcomes, saying, state_around

pytestmark = pytest.mark.anyio

GET = b"GET /ping HTTP/1.1\r\nhost: x\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 4}).encode()
CHUNKED = POST + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"

INVALID_REQUESTS = {
    "garbage": b"\x00\xff\x13\x37 nothing\r\n\r\n",
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(160),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "no host": b"GET /ping HTTP/1.1\r\n\r\n",
    "a name with a space": GET + b"a b: c\r\n\r\n",
    "two lengths": POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
    "a negative length": POST + b"content-length: -5\r\n\r\n",
    "a length of 5,000 digits": POST + b"content-length: " + b"9" * 5000 + b"\r\n\r\n",
    "an unknown coding": POST + b"transfer-encoding: gzip\r\n\r\n",
    "a chunk without a length": POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
}


async def opened(url: str, sent: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(sock=socket_to(url, sent))


async def exchange(url: str, sent: bytes) -> bytes:
    """Send bytes and return everything that the server sends until it closes the connection."""
    reader, writer = await opened(url, sent[:READ_BYTES])
    writer.write(sent[READ_BYTES:])
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return answer


def error_of(answer: bytes, status: bytes) -> str:
    """Return the error code of a response that is exactly one error of the API."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    assert first.startswith(b"HTTP/1.1 " + status), answer
    names = {line.split(b":")[0] for line in lines}
    assert names >= {b"x-request-id", b"content-length"}
    assert b"x-content-type-options: nosniff" in lines
    assert b"content-type: application/json" in lines and b"connection: close" in lines
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    return str(error["code"])


@pytest.fixture
def short_head_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout of 0.1 s for heads instead of 10 s."""
    monkeypatch.setattr(Connection, "head_timeout_s", 0.1)


@pytest.mark.parametrize("sent", INVALID_REQUESTS.values(), ids=INVALID_REQUESTS)
async def test_invalid_requests_get_an_error_in_the_apis_format(sent: bytes) -> None:
    state = state_around(FakeEngine(saying("x")))
    async with listening(state) as url:
        assert error_of(await exchange(url, sent), b"400") == "malformed_request"
    assert outcomes(state) == {"received": 0}
    assert http_counts(state) == {("other", "other", "400"): 1}


async def test_a_body_with_two_lengths_never_hides_a_second_request() -> None:
    """A proxy that uses Content-Length would take the second request for a part of the body."""
    state = state_around(FakeEngine(saying("x")))
    lengths = b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n"
    second = GET + b"\r\n"
    async with listening(state) as url:
        answer = await exchange(url, POST + lengths + b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n" + second)
    assert error_of(answer, b"400") == "malformed_request"  # the only response; then the connection is closed
    assert outcomes(state) == {"received": 0}


async def test_a_head_that_never_ends_is_rejected_at_the_size_limit() -> None:
    async with listening(state_around(FakeEngine(saying("x")))) as url:
        # One byte over the limit: a close with more unread bytes would be a reset.
        sent = (GET + b"a: ").ljust(MAX_HEAD_BYTES + 1, b"a")
        assert error_of(await exchange(url, sent), b"431") == "headers_too_large"


def lines(count: int) -> bytes:
    return b"a:\r\n" * (count - 1) + b"connection: close\r\n"


async def test_a_head_has_at_most_128_header_lines() -> None:
    state = state_around(FakeEngine(saying("x")))
    async with listening(state) as url:
        assert (await exchange(url, GET + lines(MAX_HEADER_LINES - 1) + b"\r\n")).startswith(b"HTTP/1.1 200 ")
        for too_many in (MAX_HEADER_LINES, 16_000):
            assert error_of(await exchange(url, GET + lines(too_many) + b"\r\n"), b"431") == "headers_too_large"
    assert http_counts(state)[("other", "other", "431")] == 2


@pytest.mark.parametrize("lines", [b"a: b\n" * 200 + b"\n", b"a: b\r\n" + b" c\r\n" * 200 + b"\r\n"])
async def test_bare_line_feeds_and_continuation_lines_count(lines: bytes) -> None:
    async with listening(state_around(FakeEngine(saying("x")))) as url:
        assert error_of(await exchange(url, GET + lines), b"431") == "headers_too_large"


async def test_each_request_of_a_connection_has_its_own_128_lines() -> None:
    keep = GET + b"a: b\r\n" * 100 + b"\r\n"
    async with listening(state_around(FakeEngine(saying("x")))) as url:
        answer = await exchange(url, keep * 3 + GET + lines(200) + b"\r\n")
    assert answer.count(b"HTTP/1.1 200 ") == 3
    assert answer.count(b"HTTP/1.1 431 ") == 1


async def test_trailers_have_the_same_limit() -> None:
    engine = FakeEngine(saying("x"))
    chunks = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n"
    too_many = POST + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"a:\r\n" * 10_000 + b"\r\n"
    async with listening(state_around(engine)) as url:
        assert (await exchange(url, CHUNKED + chunks + b"a: b\r\n" * 128 + b"\r\n")).startswith(b"HTTP/1.1 200 ")
        assert error_of(await exchange(url, too_many), b"431") == "headers_too_large"
    assert len(engine.submitted) == 1


async def test_empty_trailers_are_not_counted_with_the_next_head() -> None:
    chunked = POST + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
    async with listening(state_around(FakeEngine(saying("x")))) as url:
        answer = await exchange(url, chunked + GET + lines(MAX_HEADER_LINES - 1) + b"\r\n")
        assert answer.count(b"HTTP/1.1 200 ") == 2
        answer = await exchange(url, chunked + GET + lines(MAX_HEADER_LINES) + b"\r\n")
        assert [answer.count(b"HTTP/1.1 %d " % status) for status in (200, 431)] == [1, 1]


async def test_a_head_with_too_many_lines_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h11._readers, "validate", lambda *_: pytest.fail("parsed"))
    async with listening(state_around(FakeEngine(saying("x")))) as url:
        assert error_of(await exchange(url, GET + lines(16_000) + b"\r\n"), b"431") == "headers_too_large"


@pytest.mark.usefixtures("short_head_timeout")
async def test_a_head_that_arrives_byte_by_byte_times_out() -> None:
    """A byte that is sent while the response arrives can reset the connection: then the test tries again."""
    answer = b""
    async with asyncio.timeout(30), listening(state_around(FakeEngine(saying("x")))) as url:
        while not answer:
            reader, writer = await opened(url, GET)
            reading = asyncio.create_task(reader.read())
            while not (await asyncio.wait({reading}, timeout=0.01))[0]:
                writer.write(b"a")  # if each byte restarted the timer, this would end only when the head is too large
            with contextlib.suppress(ConnectionResetError):
                answer = reading.result()
            writer.close()
    assert error_of(answer, b"408") == "request_timeout"


@pytest.mark.usefixtures("short_head_timeout")
async def test_a_silent_connection_is_closed_without_a_response() -> None:
    async with listening(state_around(FakeEngine(saying("x")))) as url:
        assert await exchange(url, b"") == b""


@pytest.mark.usefixtures("short_head_timeout")
async def test_the_second_request_of_a_connection_has_the_same_timeout() -> None:
    async with listening(state_around(FakeEngine(saying("x")))) as url:
        reader, writer = await opened(url, GET + b"\r\n")
        await reader.readuntil(b"}")
        writer.write(GET)
        async with asyncio.timeout(20):
            assert error_of(await reader.read(), b"408") == "request_timeout"
        writer.close()


@pytest.mark.usefixtures("short_head_timeout")
@pytest.mark.parametrize("parts", [(b"\r\n",), (b"\r", b"\n"), (b"\r\n\n", b"\n")])
async def test_an_empty_line_behind_a_response_does_not_end_the_connection(
    parts: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[bytes] = []
    receive = Connection.data_received
    monkeypatch.setattr(Connection, "data_received", lambda self, data: (received.append(data), receive(self, data))[1])
    async with asyncio.timeout(30), listening(state_around(FakeEngine(saying("x")))) as url:
        reader, writer = await opened(url, GET + b"\r\n")
        await reader.readuntil(b"}")
        for part in parts:
            num_received = len(received)
            writer.write(part)
            await until(lambda: len(received) > num_received)  # noqa: B023
        reading = asyncio.create_task(reader.readuntil(b"}"))
        assert not (await asyncio.wait({reading}, timeout=0.3))[0]
        writer.write(GET + b"\r\n")
        assert (await reading).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_an_empty_line_behind_a_response_starts_the_keep_alive_timeout_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Connection] = []
    wait = Connection._wait_for_next_request
    monkeypatch.setattr(Connection, "_wait_for_next_request", lambda self: (started.append(self), wait(self)))
    async with asyncio.timeout(30), listening(state_around(FakeEngine(saying("x")))) as url:
        reader, writer = await opened(url, GET + b"\r\n")
        await reader.readuntil(b"}")
        writer.write(b"\r\n")
        await until(lambda: len(started) == 1)
        timer = started[0].timeout_keep_alive_task
        assert timer is not None and not timer.cancelled()
        assert started[0]._head_timer is None
        writer.close()


@pytest.mark.usefixtures("short_head_timeout")
async def test_the_head_timeout_does_not_limit_the_rest_of_a_request() -> None:
    engine = FakeEngine(saying("x"), held=True)
    async with listening(state_around(engine)) as url:
        answer = asyncio.create_task(
            exchange(url, CHUNKED + b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"),
        )
        await engine.until(lambda: bool(engine.submitted))
        assert not (await asyncio.wait({answer}, timeout=0.3))[0]
        while engine.step():
            pass
        assert (await answer).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("late", [b"\r\n", b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n"])
@pytest.mark.parametrize("head", [POST.replace(b"1.1", b"1.0"), POST + b"connection: close\r\n"])
async def test_what_follows_a_connections_last_request_does_not_end_its_answer(
    head: bytes, late: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: asyncio.Queue[bytes] = asyncio.Queue()
    receive = Connection.data_received

    def noted(connection: Connection, data: bytes) -> None:
        receive(connection, data)
        received.put_nowait(data)

    monkeypatch.setattr(Connection, "data_received", noted)
    engine = FakeEngine(saying("a"), held=True)
    async with asyncio.timeout(20), listening(state_around(engine)) as url:
        reader, writer = await opened(url, head + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
        await engine.until(lambda: bool(engine.submitted))
        writer.write(late)
        while await received.get() != late:
            pass
        while engine.step():
            pass
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ") and json.loads(answer.partition(b"\r\n\r\n")[2])["choices"]


STREAM = {"model": MODEL, "prompt": "a", "max_tokens": 250, "n": 8, "logprobs": 5, "stream": True}


async def unread_stream(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Request a stream of several MB through small buffers, and return its connection before anything was read."""
    host, port = url.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=client, limit=4096)
    body = json.dumps(STREAM).encode()
    writer.write(POST + b"connection: close\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n" + body)
    return reader, writer


async def test_a_client_that_stops_reading_is_disconnected_and_its_request_aborted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = asyncio.Event()
    monkeypatch.setattr(Connection, "stall_timeout_s", 0.1)
    monkeypatch.setattr(Connection, "_start_stall_timer", signalling(Connection._start_stall_timer, full))
    engine = FakeEngine(lambda request: range(300, 600), held=True)
    state = state_around(engine)
    async with asyncio.timeout(20), listening(state, send_buffer_bytes=4096) as url:
        reader, writer = await unread_stream(url)
        await engine.until(lambda: bool(engine.submitted))
        while not full.is_set():
            assert engine.step(), "the whole stream fits into the buffers"
            await asyncio.sleep(0)
        await engine.until(lambda: len(engine.aborted) == STREAM["n"])
        with contextlib.suppress(ConnectionResetError):
            assert b"[DONE]" not in await reader.read()
        writer.close()
    assert outcomes(state) == {"received": STREAM["n"], "abort": STREAM["n"]}


def signalling(method: Callable[[Connection], None], event: asyncio.Event) -> Callable[[Connection], None]:
    """Return the method, extended to set the event."""

    def with_event(connection: Connection) -> None:
        event.set()
        method(connection)

    return with_event


async def test_a_client_that_reads_late_but_in_time_gets_everything() -> None:
    """Delayed tokens arrive in fewer events, and none is lost."""
    engine = FakeEngine(lambda request: range(300, 600))
    async with asyncio.timeout(60), listening(state_around(engine), send_buffer_bytes=4096) as url:
        reader, writer = await unread_stream(url)
        await engine.until_played()
        answer = await reader.read()
        writer.close()
    payloads = [line for line in answer.split(b"\n") if line.startswith(b"data: {")]
    choices = [json.loads(payload.removeprefix(b"data: "))["choices"][0] for payload in payloads]
    tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["tokens"]]
    assert len(tokens) == STREAM["n"] * STREAM["max_tokens"]
    assert len(payloads) < len(tokens) / 4
    assert answer.count(b"data: [DONE]") == 1


async def test_a_client_that_reads_a_little_in_each_period_is_not_disconnected() -> None:
    """The timer aborts only if the amount of unsent data has not shrunk since it was set."""
    loop = FakeLoop()
    connection = connection_of(loop, unsent=[9000, 8000, 8000, 8000])
    connection.pause_writing()
    loop.fire()
    assert not connection.transport.aborted
    loop.fire()
    assert connection.transport.aborted


def connection_of(loop: "FakeLoop", unsent: list[int]) -> Any:
    config = uvicorn.Config(lambda scope: None, loop="asyncio", http=Connection, log_config=None)
    config.load()
    connection = Connection(config, ServerState(), {}, loop)  # type: ignore[arg-type]
    connection.connection_made(FakeTransport(unsent))  # type: ignore[arg-type]
    return connection


class FakeTransport:
    """Returns amounts of unsent data from a list."""

    def __init__(self, unsent: list[int]) -> None:
        self.aborted = False
        self._unsent = iter(unsent)

    def get_write_buffer_size(self) -> int:
        return next(self._unsent)

    def abort(self) -> None:
        self.aborted = True

    def get_extra_info(self, name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return False


class FakeLoop:
    """Keeps the newest timer; the test fires it."""

    def call_later(self, delay: float, callback: Callable[..., None], *arguments: object) -> "FakeLoop":
        self._newest = lambda: callback(*arguments)
        return self

    def fire(self) -> None:
        self._newest()

    def cancel(self) -> None:
        pass
