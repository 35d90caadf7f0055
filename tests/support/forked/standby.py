"""Processes that wait, forked before the server runs, until it launches its engine and its sandbox."""

import asyncio
import atexit
import os
import signal
import socket
import subprocess
from asyncio.subprocess import create_subprocess_exec
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import server.engine_client.launch
import server.sandbox.fork_server
from tests.support.forked.child import become
from tests.support.forked.messages import Start, connect, receive, send
from tests.support.forked.popen import ForkedPopen

NUM_STANDBYS = 2  # the first engine and the first sandbox; later ones are started from scratch


@dataclass
class Standby:
    """A child that waits."""

    pid: int
    connection: socket.socket


def prepare_launches() -> Start | None:
    """Fork the processes, and let this one launch them. Returns None here, and its start in each of them, once it is
    launched. One that is not ends with this process.
    """
    waiting: list[Standby] = []
    for _ in range(NUM_STANDBYS):
        ours, theirs = connect()
        pid = os.fork()
        if pid == 0:
            for standby in waiting:
                standby.connection.close()
            ours.close()
            return _wait_for_start(theirs)
        theirs.close()
        waiting.append(Standby(pid, ours))
    atexit.register(_end, waiting)
    server.engine_client.launch.create_subprocess_exec = partial(_launch_engine, waiting)  # type: ignore[assignment]
    server.sandbox.fork_server.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=partial(_launch, waiting), DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )
    return None


def _wait_for_start(connection: socket.socket) -> Start:
    received = receive(connection)
    if received is None:
        os._exit(0)
    connection.detach()
    become(*received)
    return received[0]


def _launch(waiting: list[Standby], command: Any, **options: Any) -> "subprocess.Popen[Any]":
    if not waiting:
        return subprocess.Popen(command, **options)
    return ForkedPopen(command, partial(_fork, waiting), **options)


def _fork(waiting: list[Standby], start: Start, fds: list[int]) -> int:
    standby = waiting.pop(0)
    with standby.connection:
        send(standby.connection, start, fds)
    return standby.pid


async def _launch_engine(waiting: list[Standby], *command: str, **options: Any) -> Any:
    if not waiting:
        return await create_subprocess_exec(*command, **options)
    return AsyncProcess(_launch(waiting, command, **options))


def _end(waiting: list[Standby]) -> None:
    for standby in waiting:
        standby.connection.close()
        os.waitpid(standby.pid, 0)


class AsyncProcess:
    """A process as asyncio.subprocess.Process shows it."""

    def __init__(self, process: "subprocess.Popen[Any]") -> None:
        self.pid = process.pid
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._handle = os.pidfd_open(self.pid)
        self._loop.add_reader(self._handle, self._on_end)

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, signum: int) -> None:
        self._process.send_signal(signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._handle)
        os.close(self._handle)
        self._process.wait()
        self._ended.set()
