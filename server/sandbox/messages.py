"""Messages between the pool, its fork server and the workers.

The fork server's socket keeps message boundaries. A worker's socket is a stream of frames: a 4-byte big-endian length
and a msgpack body. The pool decodes what workers send by type, never by pickle: a worker may be in a job's hands.
"""

import socket
import struct
from typing import Any

import msgspec

from server.sandbox.job import MAX_REPLY_BYTES

LENGTH = struct.Struct(">I")
MAX_COMMAND_BYTES = 4096


class Fork(msgspec.Struct, frozen=True, tag=True):
    """Pool to fork server, with a socket and the worker's standard error: start a worker."""

    worker_id: int


class Kill(msgspec.Struct, frozen=True, tag=True):
    """Pool to fork server: kill a worker. Unknown and ended ones are ignored."""

    worker_id: int


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Pool to fork server, with a socket that gives one Call and gets one Reply: build an object for later workers."""

    name: str


class Exited(msgspec.Struct, frozen=True):
    """Fork server to pool: a worker has ended."""

    worker_id: int
    status: int  # as os.waitstatus_to_exitcode returns it
    cpu_s: float  # of all its jobs
    max_rss_bytes: int = 0


class Call(msgspec.Struct, frozen=True):
    """One job, as a worker gets it."""

    function: str
    args: tuple[Any, ...]
    prepared: str | None
    cpu_s: float
    memory_bytes: int


class Reply(msgspec.Struct, frozen=True):
    """End of one job."""

    value: msgspec.Raw  # encoded result; nil if there is none
    cpu_s: float
    error: tuple[str, str] | None = None  # class and message of an exception
    retires: bool = False  # the worker ends: it has grown
    max_rss_bytes: int = 0  # of the worker, up to now


Command = Fork | Kill | Prepare


def encode_frame(message: msgspec.Struct) -> bytes:
    """Encode a message for a stream, with its length in front."""
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


def read_frame(stream: socket.socket) -> bytes | None:
    """Read one frame's body from a blocking socket; None at its end."""
    head = _read_exactly(stream, LENGTH.size)
    return None if head is None else _read_exactly(stream, LENGTH.unpack(head)[0])


def reply_length(head: bytes | bytearray) -> int:
    """Return the length of the reply behind this head. Raises ValueError if it is longer than any job's reply."""
    (length,) = LENGTH.unpack(head)
    if length > MAX_REPLY_BYTES + MAX_COMMAND_BYTES:
        raise ValueError("a sandbox process announced a reply beyond the limit")
    return int(length)


def _read_exactly(stream: socket.socket, num_bytes: int) -> bytes | None:
    buffer = bytearray(num_bytes)
    view, num_read = memoryview(buffer), 0
    while num_read < num_bytes:
        received = stream.recv_into(view[num_read:])
        if received == 0:
            return None
        num_read += received
    return bytes(buffer)
