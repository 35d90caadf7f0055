"""Handle of one sandbox process: sends it jobs, and finds out why it ended."""

import asyncio
import contextlib
import os
import signal
import socket

import msgspec

from server.sandbox.errors import Crashed, Killed, RanOutOfMemory, SandboxError, TookTooLong
from server.sandbox.messages import LENGTH, Call, Exited, Reply, encode_frame, reply_length

STDERR_BYTES = 1 << 16
EXIT_REPORT_S = 5.0  # a worker's end is reported in milliseconds
# What libraries write before they give up: Rust, C++, Python.
OUT_OF_MEMORY_MARKS = (b"memory allocation of", b"bad_alloc", b"MemoryError", b"out of memory")


class WorkerHandle:
    """One worker and the sockets to it."""

    def __init__(self, worker_id: int, generation: int) -> None:
        """`generation`: number of objects that were prepared before the worker was started."""
        self.worker_id = worker_id
        self.generation = generation
        self.used_s = 0.0  # CPU time of the jobs that have ended
        self.exited: asyncio.Future[Exited] = asyncio.get_running_loop().create_future()
        self._stream, self.their_stream = socket.socketpair()
        self._stream.setblocking(False)
        stderr_fd, self._their_stderr_fd = os.pipe()
        os.set_blocking(stderr_fd, False)
        os.set_blocking(self._their_stderr_fd, False)  # a worker that fills the pipe loses the rest
        self._stderr_fd: int | None = stderr_fd

    @property
    def their_fds(self) -> tuple[int, int]:
        """The worker's ends: of the socket, of standard error."""
        return self.their_stream.fileno(), self._their_stderr_fd

    def close_their_ends(self) -> None:
        """Close this process' copies of the worker's ends; call it once they are sent."""
        self.their_stream.close()
        os.close(self._their_stderr_fd)

    async def run(self, call: Call) -> Reply:
        """Run one job. Raises SandboxError if the worker ends first: it is then of no further use."""
        try:
            return await exchange(self._stream, call)
        except (OSError, EOFError):
            raise await self._reason_of_end() from None
        except (ValueError, msgspec.DecodeError):
            raise Crashed("it sent an invalid reply") from None

    def close(self) -> None:
        """Close the socket; an idle worker then exits."""
        self._stream.close()
        if self._stderr_fd is not None:
            os.close(self._stderr_fd)
            self._stderr_fd = None

    async def _reason_of_end(self) -> SandboxError:
        try:
            exited = await asyncio.wait_for(asyncio.shield(self.exited), EXIT_REPORT_S)
        except TimeoutError:
            return Killed("the sandbox process ended, and nothing reported why")
        return reason_of_end(exited.status, self._read_stderr())

    def _read_stderr(self) -> bytes:
        if self._stderr_fd is None:
            return b""
        with contextlib.suppress(OSError):
            return os.read(self._stderr_fd, STDERR_BYTES)
        return b""


async def exchange(stream: socket.socket, call: Call) -> Reply:
    """Send a call on a non-blocking socket and return its reply.

    Raises OSError or EOFError if the other end is gone, ValueError or msgspec.DecodeError for an invalid reply.
    """
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(stream, encode_frame(call))
    head = await _read(loop, stream, LENGTH.size)
    body = await _read(loop, stream, reply_length(head))
    return msgspec.msgpack.decode(body, type=Reply)


async def _read(loop: asyncio.AbstractEventLoop, stream: socket.socket, num_bytes: int) -> bytearray:
    buffer = bytearray(num_bytes)
    view, num_read = memoryview(buffer), 0
    while num_read < num_bytes:
        received = await loop.sock_recv_into(stream, view[num_read:])
        if received == 0:
            raise EOFError
        num_read += received
    return buffer


def reason_of_end(status: int, stderr: bytes) -> SandboxError:
    """Explain the end of a worker during a job. `status`: its exit code, or a signal's number below 0."""
    if -status in (signal.SIGPROF, signal.SIGXCPU):
        return TookTooLong("it used up its CPU time", is_proven=True)
    if -status == signal.SIGKILL:
        return Killed("the sandbox process was killed")
    if any(mark in stderr for mark in OUT_OF_MEMORY_MARKS):
        return RanOutOfMemory("it needed more memory than its limit")
    return Crashed(f"it ended by signal {-status}" if status < 0 else f"it exited with {status}")
