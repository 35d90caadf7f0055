"""Handle of the fork server, see server/sandbox/process.py: sends commands, reports the ends of workers."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

import server
from server.sandbox.messages import MAX_COMMAND_BYTES, Command, Exited

COMMAND = (sys.executable, "-m", "server.sandbox.process")
EXIT_WAIT_S = 1.0  # a killed process is gone in milliseconds


class ForkServerLost(Exception):
    """The fork server does not take commands any more."""


class ForkServer:
    """One fork server process. Not reused: once lost, it stays lost."""

    def __init__(self, on_exited: Callable[[Exited], None], on_lost: Callable[[], None]) -> None:
        """`on_exited`: a worker has ended. `on_lost` is called once, unless close() was: the process is gone."""
        self._on_exited = on_exited
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        self._is_closed = False
        with theirs:
            self._process = subprocess.Popen(
                (*COMMAND, str(theirs.fileno()), str(os.getpid())),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd=_package_root(),
                start_new_session=True,
            )
        self._loop.add_reader(self._control, self._receive)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_closed(self) -> bool:
        """Whether it takes no commands any more: it was lost, or closed."""
        return self._is_closed

    def send(self, command: Command, fds: tuple[int, ...] = ()) -> None:
        """Send a command with copies of file descriptors. Raises ForkServerLost."""
        if self._is_closed:
            raise ForkServerLost
        try:
            socket.send_fds(self._control, [msgspec.msgpack.encode(command)], fds)
        except OSError:  # a full buffer too: a fork server that takes no commands is of no use
            self._lose()
            raise ForkServerLost from None

    def close(self) -> None:
        """Kill the process; the kernel kills its workers. Waits for no job."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._control)
        self._control.close()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_WAIT_S)

    def _receive(self) -> None:
        try:
            frame = self._control.recv(MAX_COMMAND_BYTES)
        except BlockingIOError:
            return
        except OSError:
            frame = b""
        if frame:
            self._on_exited(msgspec.msgpack.decode(frame, type=Exited))
        else:
            self._lose()

    def _lose(self) -> None:
        if not self._is_closed:
            self.close()
            self._on_lost()


def _package_root() -> Path:
    """Return the folder in which `-m` finds this installation, whatever the working directory is."""
    (package_folder,) = server.__path__
    return Path(package_folder).parent
