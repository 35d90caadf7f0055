"""server/http/client_hello.py: the end of a ClientHello, however it is cut."""

import asyncio
import socket

import pytest

from server.http.client_hello import client_hello_bytes, wait_for_client_hello
from tests.support.tls import client_hello, split_into_records

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("record_bytes", [1, 3, 4, 5, 100, 1 << 14])
def test_a_hello_is_complete_with_its_last_byte(record_bytes: int) -> None:
    # All records are read again for each byte, which takes seconds where a long hello comes in small records.
    message = client_hello(curve="prime256v1" if record_bytes <= 5 else None)
    assert len(message) > 1 << 8, "its length fits one byte"
    hello = split_into_records(message, record_bytes)
    for length in range(len(hello)):
        assert length < client_hello_bytes(hello[:length]) <= len(hello)
    assert client_hello_bytes(hello) == client_hello_bytes(hello + b"more") == len(hello)


@pytest.mark.parametrize(
    "start", [b"GET / HTTP/1.1\r\n", b"\x80\x2e\x01\x03\x01", b"\x16\x03\x01\0\1\1\x15\x03\x03\0\2"]
)
def test_what_is_no_hello_needs_no_more_bytes(start: bytes) -> None:
    assert client_hello_bytes(start) <= len(start)


async def test_the_wait_ends_with_the_last_byte_and_reads_none() -> None:
    hello = split_into_records(client_hello(), 50)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        waiting = asyncio.create_task(wait_for_client_hello(ours))
        for length in (1, 7, 54, 55, 60):
            theirs.sendall(hello[:length])
            await asyncio.sleep(0)
            assert not waiting.done()
            hello = hello[length:]
        theirs.sendall(hello)
        async with asyncio.timeout(60):
            await waiting
        assert len(ours.recv(1 << 14)) == len(split_into_records(client_hello(), 50))


async def test_the_wait_ends_when_the_client_leaves_or_sends_something_else() -> None:
    for sent in (b"", b"\x16", b"GET / HTTP/1.1"):
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            theirs.sendall(sent)
            theirs.close()
            async with asyncio.timeout(60):
                await wait_for_client_hello(ours)
