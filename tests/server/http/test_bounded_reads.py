"""server/http/bounded_reads.py: the parser gets small reads only. Turns: test_connections.py, test_read_limiter.py."""

import asyncio
from collections.abc import Callable

import pytest

from server.http.bounded_reads import READ_BYTES
from server.http.protocol import Connection
from server.http.read_limiter import ReadLimiter
from tests.server.http.test_protocol import BODY, CHUNKED, POST, exchange
from tests.support.fake_engine import FakeEngine
from tests.support.serving import listening, saying, state_around

pytestmark = pytest.mark.anyio


async def test_the_parser_gets_small_reads_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one byte cost so much per byte that large reads would block the event loop."""
    sizes: list[int] = []
    parse = Connection.data_received

    def noted(self: Connection, data: bytes) -> None:
        sizes.append(len(data))
        parse(self, data)

    monkeypatch.setattr(Connection, "data_received", noted)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in b" " * 3000 + BODY)
    async with listening(state_around(FakeEngine(saying("x")))) as url:
        assert (await exchange(url, CHUNKED + chunks + b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert len(sizes) > 10 and max(sizes) <= READ_BYTES


async def test_reads_of_bodies_take_turns_too() -> None:
    class Counted(ReadLimiter):
        num_deferred = 0

        def defer(self, read: Callable[[], None]) -> None:
            self.num_deferred += 1
            super().defer(read)

    limiter = Counted(max_reads=1)
    body = b" " * 50_000 + BODY
    head = POST + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
    async with listening(state_around(FakeEngine(saying("x"))), body_limiter=limiter) as url:
        answers = await asyncio.gather(*(exchange(url, head + body) for _ in range(4)))
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    assert limiter.num_deferred > 0
