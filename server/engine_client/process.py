"""One engine process and the socket to it: started, spoken to, listened to, ended. It dies once, and stays dead.

Everything runs on the event loop; nothing here blocks it.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

import engine
from engine.heartbeat import Heartbeat
from engine.messages import Failed, FrameReader, FromEngine, Start, ToEngine, encode_frame
from server.engine_client.stderr_log import StderrLog

logger = logging.getLogger("smoe.engine")

ENGINE_COMMAND = (sys.executable, "-m", "engine.process")
EXIT_GRACE_S = 1.0  # for what a process that has exited left in the socket


@dataclass(frozen=True)
class ProcessExit:
    """Why an engine process is of no use any more."""

    message: str  # one line for the person at the terminal: it may name paths
    exit_code: int = 1  # what the server should exit with where there is no other engine


class EngineProcessHandle:
    """One engine process. `on_message` gets what it says, `on_death` is called once: when it is gone, or should be."""

    def __init__(
        self, command: Sequence[str], on_message: Callable[[FromEngine], None], on_death: Callable[[ProcessExit], None]
    ) -> None:
        """`command` gets the numbers of the socket and of the heartbeat's memory."""
        self._heartbeat: Heartbeat | None = None
        self._command = command
        self._on_message = on_message
        self._on_death = on_death
        self._process: Process | None = None
        self._transport: asyncio.Transport | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._is_dead = False

    @property
    def pid(self) -> int | None:
        """The process' id, once there is one."""
        return None if self._process is None else self._process.pid

    @property
    def num_beats(self) -> int:
        """What the process' counter stands at; see server/engine_client/watchdog.py."""
        return 0 if self._heartbeat is None else self._heartbeat.count

    async def start(self, message: Start) -> None:
        """Starts the process and tells it what to load. Returns at once. Raises OSError.

        A session of its own keeps the terminal's Ctrl-C away from the process: it ends when its socket does, after the
        drain.
        """
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as theirs_too, contextlib.ExitStack() as on_error:
            self._heartbeat = Heartbeat()
            theirs_too.callback(self._heartbeat.close)
            ours, theirs = map(on_error.enter_context, socket.socketpair())
            theirs_too.enter_context(theirs)
            log_reader, log_writer = (on_error.enter_context(os.fdopen(fd, "rb", 0)) for fd in os.pipe())
            theirs_too.enter_context(log_writer)
            fds = theirs.fileno(), self._heartbeat.fd
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                *map(str, fds),
                pass_fds=fds,
                stdin=DEVNULL,
                stderr=log_writer.fileno(),
                cwd=package_root(),
                start_new_session=True,
            )
            on_error.pop_all()
        await loop.connect_read_pipe(StderrLog, log_reader)
        self._transport, _ = await loop.create_connection(lambda: _EngineProtocol(self._receive, self.die), sock=ours)
        self._watcher = loop.create_task(self._watch(self._process))
        self.send(message)
        if self._is_dead:  # it was ended while it was being started
            self._transport.close()

    def send(self, message: ToEngine) -> None:
        """To a dead one nothing is said."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(message))

    def die(self, death: ProcessExit) -> None:
        """The first reason stands. Closing our end is what makes a process exit that still can."""
        if self._is_dead:
            return
        self._is_dead = True
        if self._transport is not None:
            self._transport.close()
        self._on_death(death)

    async def end(self, grace_s: float = 0.0) -> str:
        """Waits until the process is gone; after `grace_s` it is killed. Returns how it ended, in words. Idempotent."""
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
            await self._watcher
        return _in_words(self._process.returncode or 0)

    def _receive(self, message: FromEngine) -> None:
        if self._is_dead:
            return
        if isinstance(message, Failed):
            self.die(ProcessExit(message.message, message.exit_code))
        else:
            self._on_message(message)

    async def _watch(self, process: Process) -> None:
        """A process that exits without closing its socket (a child of its own holds it open) is dead all the same."""
        code = await process.wait()
        if not self._is_dead:
            death = ProcessExit(f"the engine process {_in_words(code)}")
            asyncio.get_running_loop().call_later(EXIT_GRACE_S, self.die, death)


class _EngineProtocol(asyncio.Protocol):
    """Cuts the bytes from the engine into messages."""

    def __init__(self, receive: Callable[[FromEngine], None], die: Callable[[ProcessExit], None]) -> None:
        self._receive = receive
        self._die = die
        self._reader: FrameReader[FromEngine] = FrameReader(FromEngine)

    def data_received(self, chunk: bytes) -> None:
        try:
            messages = self._reader.feed(chunk)
        except msgspec.DecodeError:
            logger.exception("the engine sent a message that is none")
            self._die(ProcessExit("the engine sent a message that the server cannot read"))
            return
        for message in messages:
            self._receive(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._die(ProcessExit("the engine process is gone"))


def package_root() -> Path:
    """Where `-m engine.process` finds this installation's engine, whatever folder the server was started in."""
    (package_folder,) = engine.__path__
    return Path(package_folder).parent


def _in_words(exit_code: int) -> str:
    if exit_code < 0:
        return f"was killed by signal {-exit_code}"
    return f"exited with {exit_code}"
