"""server/http/bounded_reads.py: the parser gets small reads only.

Turns of many connections: test_connections.py, test_read_limiter.py.
"""

import asyncio
from collections.abc import Callable

import pytest

from server.http.bounded_reads import BODY_READ_BYTES, READ_BYTES
from server.http.connections import Connections
from server.http.limits.read_limiter import ReadLimiter
from server.http.protocol import Connection
from tests.server.http.test_protocol import BODY, CHUNKED, POST, exchange
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.raw_http import LEAVINGS, Leaving, RawClient
from tests.support.servers.serving import listening, saying, state_around

pytestmark = pytest.mark.anyio

CHUNKS = b"".join(b"1\r\n%c\r\n" % byte for byte in b" " * 3000 + BODY)


class HeldReads(ReadLimiter):
    """Defers every read until `release`."""

    def __init__(self) -> None:
        super().__init__()
        self.tenants: list[int | None] = []
        self.is_held = True
        self._deferred_one = asyncio.Event()

    def try_acquire(self) -> bool:
        return not self.is_held and super().try_acquire()

    def defer(self, read: Callable[[], None], tenant: int | None = None) -> None:
        self.tenants.append(tenant)
        self._deferred_one.set()
        super().defer(read, tenant)

    async def until_deferred(self, count: int) -> None:
        while len(self.tenants) < count:
            self._deferred_one.clear()
            await self._deferred_one.wait()

    def release(self) -> None:
        self.is_held = False
        self.try_acquire()  # begins the next iteration


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each read that the parser gets."""
    sizes: list[int] = []
    parse = Connection.data_received

    def noted(self: Connection, data: bytes) -> None:
        sizes.append(len(data))
        parse(self, data)

    monkeypatch.setattr(Connection, "data_received", noted)
    return sizes


async def test_the_parser_gets_small_reads_only(sizes: list[int]) -> None:
    """Chunks of one byte cost so much per byte that large reads would block the event loop."""
    async with listening(state_around(FakeEngine(saying("x")))) as url:
        assert (await exchange(url, CHUNKED + CHUNKS + b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert len(sizes) > 10 and max(sizes) <= READ_BYTES


async def test_a_body_with_a_length_takes_few_reads(sizes: list[int]) -> None:
    """Each read costs the event loop as much as one of a kilobyte: a megabyte took a thousand of them."""
    body = b" " * 500_000 + BODY
    head = POST + b"content-length: %d\r\n\r\n" % len(body)
    async with asyncio.timeout(60), listening(state_around(FakeEngine(saying("x")))) as url:
        client = await RawClient.connect(url)
        client.writer.write(head)
        await client.writer.drain()
        for first in range(0, len(body), BODY_READ_BYTES):  # a part is read before the next one is sent
            num_read = sum(sizes)
            client.writer.write(body[first : first + BODY_READ_BYTES])
            while sum(sizes) == num_read:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert (await client.reader.readline()).startswith(b"HTTP/1.1 200 ")
        assert len(sizes) < len(body) // READ_BYTES // 4
        num_reads = len(sizes)
        client.writer.write(CHUNKED + CHUNKS + b"0\r\n\r\n")
        assert b"HTTP/1.1 200 " in await client.reader.read()
        assert max(sizes[num_reads:]) <= READ_BYTES
        client.close()


async def test_a_read_of_a_body_does_not_reach_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the read is parsed at once: 16 KiB of chunks of one byte take 30 ms."""
    events: list[tuple[int, int]] = []  # bytes of a read, and those of the body that were still to come
    parse = Connection.data_received

    def noted(self: Connection, data: bytes) -> None:
        events.append((len(data), self.body_bytes_left))
        parse(self, data)

    monkeypatch.setattr(Connection, "data_received", noted)
    body = b" " * 50_000 + BODY
    first = POST + b"content-length: %d\r\n\r\n" % len(body) + body
    async with asyncio.timeout(60), listening(state_around(FakeEngine(saying("x")))) as url:
        answer = await exchange(url, first + CHUNKED + CHUNKS + b"0\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert all(size <= max(left, READ_BYTES) for size, left in events)
    assert max(size for size, _ in events) > READ_BYTES


async def test_reads_of_bodies_take_turns_too() -> None:
    class Counted(ReadLimiter):
        num_deferred = 0

        def defer(self, read: Callable[[], None], tenant: int | None = None) -> None:
            self.num_deferred += 1
            super().defer(read, tenant)

    limiter = Counted(max_reads=1)
    body = b" " * 50_000 + BODY
    head = POST + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
    async with listening(state_around(FakeEngine(saying("x"))), body_limiter=limiter) as url:
        answers = await asyncio.gather(*(exchange(url, head + body) for _ in range(4)))
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    assert limiter.num_deferred > 0


async def test_deferred_reads_take_turns_by_the_api_key_in_their_head() -> None:
    limiter = HeldReads()
    async with (
        asyncio.timeout(60),
        listening(state_around(FakeEngine(saying("x"))), read_limiter=limiter, api_keys=("first", "second")) as url,
    ):
        tasks = []
        for number, line in enumerate((b"", b"Authorization: Bearer second\r\n", b"X-Api-Key: first\r\n"), start=1):
            request = POST + line + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
            tasks.append(asyncio.create_task(exchange(url, request)))
            await limiter.until_deferred(number)
        assert limiter.tenants == [None, 1, 0]
        limiter.release()
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in await asyncio.gather(*tasks))


@pytest.mark.parametrize("how", LEAVINGS)
async def test_a_deferred_request_whose_client_has_left_is_not_parsed(
    how: Leaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    parse = Connection.data_received

    def noted(self: Connection, data: bytes) -> None:
        parsed.append(data)
        parse(self, data)

    monkeypatch.setattr(Connection, "data_received", noted)
    limiter, connections = HeldReads(), Connections()
    async with (
        asyncio.timeout(60),
        listening(state_around(FakeEngine(saying("x"))), read_limiter=limiter, connections=connections) as url,
    ):
        client = await RawClient.connect(url)
        client.post("/v1/completions", {"model": "any", "prompt": "a"})
        await limiter.until_deferred(1)
        if how == "half-close":
            client.writer.write_eof()
        else:
            await client.leave(how)
            await client.writer.wait_closed()
        limiter.release()
        await connections.wait_none()
        client.close()
    assert not parsed
