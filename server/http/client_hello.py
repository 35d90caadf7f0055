"""Wait for a TLS client's first message without reading it, so that the costly part of a handshake can take turns.

The layout of records and of the message's header: RFC 8446, sections 4 and 5.1.
"""

import asyncio
import socket

from server.http.limits.read_limiter import resolve

MAX_HELLO_BYTES = 16 << 10  # a longer one is left to the TLS library
MAX_WAKES = 64  # the system may report less than was asked for when it is short of memory
RECORD_HEADER_BYTES, MESSAGE_HEADER_BYTES = 5, 4
HANDSHAKE_RECORD = 22


async def wait_for_client_hello(connected: socket.socket) -> None:
    """Return when the whole ClientHello has arrived, or something that is none. Reads nothing.

    The caller sets a time limit. A client that has closed its side counts as arrived.
    """
    needed = RECORD_HEADER_BYTES
    for _ in range(MAX_WAKES):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, needed)  # no wakes for each byte before that
        await _wait_readable(connected)
        start = connected.recv(MAX_HELLO_BYTES, socket.MSG_PEEK)
        if len(start) < needed:  # the client has closed its side
            break
        needed = client_hello_bytes(start)
        if needed <= len(start) or needed > MAX_HELLO_BYTES:
            break
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def client_hello_bytes(start: bytes) -> int:
    """Return how many bytes of the stream are needed to go on reading the ClientHello at its beginning.

    At most len(start) if it is complete, or if it is none. The message may be split across records. Example: a hello of
    10 bytes after its 4-byte header, in one record: 5 for b"", 19 for the first 5 bytes, 19 for all.
    """
    position, message = 0, b""
    while len(start) >= position + RECORD_HEADER_BYTES:
        if start[position] != HANDSHAKE_RECORD:
            return position
        end = position + RECORD_HEADER_BYTES + int.from_bytes(start[position + 3 : position + RECORD_HEADER_BYTES])
        if len(start) < end:
            return end
        message += start[position + RECORD_HEADER_BYTES : end]
        position = end
        if len(message) >= MESSAGE_HEADER_BYTES + int.from_bytes(message[1:MESSAGE_HEADER_BYTES]):
            return position
    return position + RECORD_HEADER_BYTES


async def _wait_readable(connected: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connected, resolve, readable)
    try:
        await readable
    finally:
        loop.remove_reader(connected)
