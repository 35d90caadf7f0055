"""server/http/bounded_reads.py: the parser gets small reads only. Turns: test_connections.py, test_read_limiter.py."""

import pytest

from server.http.bounded_reads import READ_BYTES
from server.http.protocol import Connection
from tests.server.http.test_protocol import BODY, CHUNKED, exchange
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
