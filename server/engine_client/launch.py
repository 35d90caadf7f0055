"""Launch a process of the engine. Imports little: `smoe serve` does it before its own imports, which take a second."""

import contextlib
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process, create_subprocess_exec
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import engine
from engine.heartbeat import Heartbeat
from server.settings.sources import engine_environment

ENGINE_COMMAND = (sys.executable, "-m", "engine.process")


@dataclass
class LaunchedEngine:
    """A process that imports its modules and then waits for its first message. It ends when its socket is closed, and
    with this process at the latest."""

    process: Process
    connection: socket.socket  # to the process
    log: IO[bytes]  # its standard error
    heartbeat: Heartbeat
    is_adopted: bool = False  # an EngineProcessHandle owns the other fields

    def end(self) -> None:
        """Kill the process if nothing has adopted it."""
        if self.is_adopted:
            return
        self.connection.close()
        self.log.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


async def launch_engine(command: Sequence[str] = ENGINE_COMMAND) -> LaunchedEngine:
    """Start a process. Raises OSError.

    `command` is run with three more arguments: the file descriptors of the socket and of the heartbeat's memory, and
    the id of this process. The process gets a session of its own, so that Ctrl-C in the terminal does not reach it: it
    ends when its socket is closed, after the drain.
    """
    with contextlib.ExitStack() as child_ends, contextlib.ExitStack() as on_error:
        heartbeat = Heartbeat()
        child_ends.callback(heartbeat.close)
        ours, theirs = map(on_error.enter_context, socket.socketpair())
        child_ends.enter_context(theirs)
        log_reader, log_writer = (on_error.enter_context(os.fdopen(fd, "rb", 0)) for fd in os.pipe())
        child_ends.enter_context(log_writer)
        fds = theirs.fileno(), heartbeat.fd
        process = await create_subprocess_exec(
            *command,
            *map(str, (*fds, os.getpid())),
            pass_fds=fds,
            stdin=DEVNULL,
            stderr=log_writer.fileno(),
            cwd=package_root(),
            env=engine_environment(),
            start_new_session=True,
        )
        on_error.pop_all()
    return LaunchedEngine(process, ours, log_reader, heartbeat)


def package_root() -> Path:
    """Return the folder in which `-m engine.process` finds this installation, whatever the working directory is."""
    (package_folder,) = engine.__path__
    return Path(package_folder).parent
