"""Handle of one engine process and of the socket to it. A handle is not reused: it fails once and stays dead.

Everything runs on the event loop; nothing here blocks it.
"""

import asyncio
import contextlib
import logging
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from engine.heartbeat import Heartbeat
from engine.messages import Failed, FrameReader, FromEngine, Start, ToEngine, encode_frame
from server.engine_client.launch import LaunchedEngine, launch_engine
from server.engine_client.stderr_log import StderrLog

logger = logging.getLogger("smoe.engine")

MAX_TURN_BYTES = 1 << 19  # read from the engine in one iteration of the event loop: about 10 ms to decode
RANKS_GRACE_S = 5.0  # for the engine's own processes to end after it: the next engine needs their memory
LOST_GRACE_S = 0.5  # for the exit code of a process whose connection has ended
EXIT_GRACE_S = 1.0  # to read what a process wrote to the socket before it exited


@dataclass(frozen=True)
class ProcessExit:
    """Reason why an engine process ended or has to be ended."""

    message: str  # one line for the operator, may contain paths
    exit_code: int = 1  # exit code of the server if the process is not replaced


class EngineProcessHandle:
    """Starts one engine process, exchanges messages with it, and ends it."""

    def __init__(
        self, command: Sequence[str], on_message: Callable[[FromEngine], None], on_exit: Callable[[ProcessExit], None]
    ) -> None:
        """`command`: see launch_engine().

        `on_message` receives every message except Failed. `on_exit` is called once: the process is gone or useless.
        """
        self._heartbeat: Heartbeat | None = None
        self._command = command
        self._on_message = on_message
        self._on_exit = on_exit
        self._process: Process | None = None
        self._transport: asyncio.Transport | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._is_dead = False
        self._is_lost = False
        self._log = StderrLog()

    @property
    def pid(self) -> int | None:
        """Process id; None before the start."""
        return None if self._process is None else self._process.pid

    @property
    def had_bus_error(self) -> bool:
        """True if a page of its memory could not be read: mapped weights were lost."""
        return self._process is not None and self._process.returncode == -signal.SIGBUS

    @property
    def num_beats(self) -> int:
        """Value of the process' progress counter, see server/engine_client/watchdog.py."""
        return 0 if self._heartbeat is None else self._heartbeat.count

    async def start(self, message: Start) -> None:
        """Send `message` to the process; launch one before if there is none. Nothing is loaded yet. Raises OSError."""
        if self._process is None:
            await self.adopt(await launch_engine(self._command))
        self.send(message)

    async def adopt(self, launched: LaunchedEngine) -> None:
        """Take over a launched process, which imports its modules while it waits for `start`."""
        loop = asyncio.get_running_loop()
        self._process, self._heartbeat, launched.is_adopted = launched.process, launched.heartbeat, True
        await loop.connect_read_pipe(lambda: self._log, launched.log)
        protocol = _EngineProtocol(self._receive, self.fail, self._on_lost, launched.connection.dup())
        self._transport, _ = await loop.create_connection(lambda: protocol, sock=launched.connection)
        self._watcher = loop.create_task(self._watch(launched.process))
        if self._is_dead:  # `fail` or `end` was called while the process was starting
            self._transport.close()

    def send(self, message: ToEngine) -> None:
        """Send a message. Does nothing if the process is dead."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(message))

    def fail(self, reason: ProcessExit) -> None:
        """Declare the process dead and close the socket, which makes it exit. Only the first call has an effect."""
        if self._is_dead:
            return
        self._is_dead = True
        if self._transport is not None:
            self._transport.close()
        self._on_exit(reason)

    async def end(self, grace_s: float = 0.0) -> str:
        """Wait until the process has exited; kill it after `grace_s`. Returns a phrase: "exited with 0". Idempotent."""
        self._is_dead = True
        if self._transport is not None:
            self._transport.close()
        if self._process is None or self._watcher is None:
            return "was never started"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._watcher), grace_s)
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            await asyncio.shield(self._watcher)  # a cancelled restart must not cancel the watcher
        return _describe_exit(self._process.returncode or 0)

    async def wait_for_ranks(self) -> None:
        """After end(): wait, for RANKS_GRACE_S at most, until the processes that the engine started are gone too. All
        of them have its standard error."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._log.closed.wait(), RANKS_GRACE_S)

    def _receive(self, message: FromEngine) -> None:
        if self._is_dead:
            return
        if isinstance(message, Failed):
            self.fail(ProcessExit(message.message, message.exit_code))
        else:
            self._on_message(message)

    async def _watch(self, process: Process) -> None:
        """Report an exit even if the socket stays open, because a child of the process still has it."""
        code = await process.wait()
        if not self._is_dead:
            asyncio.get_running_loop().call_later(0.0 if self._is_lost else EXIT_GRACE_S, self.fail, _reason(code))

    def _on_lost(self) -> None:
        """Report the end of the connection with the process' exit code, for which it waits a little."""
        self._is_lost = True
        code = None if self._process is None else self._process.returncode
        if code is None:
            gone = ProcessExit("the engine process is gone")
            asyncio.get_running_loop().call_later(LOST_GRACE_S, self.fail, gone)
        else:
            self.fail(_reason(code))


class _EngineProtocol(asyncio.Protocol):
    """Splits the bytes from the engine into messages."""

    def __init__(
        self,
        receive: Callable[[FromEngine], None],
        fail: Callable[[ProcessExit], None],
        lost: Callable[[], None],
        unread: socket.socket,
    ) -> None:
        """`lost`: called at the end of the connection. `unread`: a duplicate of its socket, which connection_lost()
        reads once more and closes."""
        self._receive = receive
        self._fail = fail
        self._lost = lost
        self._unread = unread
        self._reader: FrameReader[FromEngine] = FrameReader(FromEngine)
        self._transport: asyncio.Transport
        self._num_turn_bytes = 0  # read in this iteration of the event loop

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport  # uvloop's is no subclass of asyncio.Transport

    def data_received(self, chunk: bytes) -> None:
        """Decode and pass on messages. After MAX_TURN_BYTES other callbacks of the event loop get a turn: libuv would
        read up to 32 times in a row."""
        if not self._num_turn_bytes:
            asyncio.get_running_loop().call_soon(self._end_turn)
        self._num_turn_bytes += len(chunk)
        if self._num_turn_bytes >= MAX_TURN_BYTES:
            self._transport.pause_reading()
        self._decode(chunk)

    def _end_turn(self) -> None:
        if self._num_turn_bytes >= MAX_TURN_BYTES and not self._transport.is_closing():
            self._transport.resume_reading()
        self._num_turn_bytes = 0

    def _decode(self, chunk: bytes) -> None:
        try:
            messages = self._reader.feed(chunk)
        except msgspec.DecodeError:
            logger.exception("the engine sent an invalid message")
            self._fail(ProcessExit("the engine sent a message that the server cannot decode"))
            return
        for message in messages:
            self._receive(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """Decode first what the engine sent before its end: a write that fails ends the connection without reading."""
        with self._unread, contextlib.suppress(OSError):
            self._decode(self._unread.recv(MAX_TURN_BYTES, socket.MSG_DONTWAIT))  # more than its buffer holds
        if exc is not None:
            logger.info("the connection to the engine broke: %s", exc)
        self._lost()


def _reason(exit_code: int) -> ProcessExit:
    hint = ", as the system does when memory runs out" if exit_code == -signal.SIGKILL else ""
    return ProcessExit(f"the engine process {_describe_exit(exit_code)}{hint}")


def _describe_exit(exit_code: int) -> str:
    if exit_code < 0:
        return f"was killed by signal {-exit_code}"
    return f"exited with {exit_code}"
