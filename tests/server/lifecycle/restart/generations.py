"""Servers with a fake engine that SIGHUP replaces, and the processes below the first one."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from server.lifecycle.restart.successor import RUN
from tests.support.conditions import wait_until
from tests.support.paths import FAKE_ENGINE_SERVER, ROOT
from tests.support.servers.server_process import Server

TAKEN_OVER = "SIGHUP: process .* has taken over"


def child_commands(pid: int) -> dict[int, str]:
    """Return the command lines of a process' children, without those that end meanwhile."""
    commands: dict[int, str] = {}
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            commands[child] = Path(f"/proc/{child}/cmdline").read_text()
    return commands


def engine_of(pid: int) -> int:
    (engine,) = [child for child, command in child_commands(pid).items() if "fake_engine_process" in command]
    return engine


def servers_below(pid: int) -> list[int]:
    return [child for child, command in child_commands(pid).items() if FAKE_ENGINE_SERVER.name in command]


def hang_up(server: Server) -> int:
    """Send SIGHUP, wait until a new process has taken over, return its id."""
    server.process.send_signal(signal.SIGHUP)
    line = server.read_until(TAKEN_OVER)
    return int(line.split()[2])


@contextlib.contextmanager
def open_streams(server: Server, count: int) -> Iterator[list[Iterator[str]]]:
    """Start streams and read the first event of each."""
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(server.stream()).iter_lines() for _ in range(count)]
        for stream in lines:
            assert next(stream).startswith("data: ")
        yield lines


def loading(server: Server, pid: int) -> int:
    """Send SIGHUP to the server, of which `pid` is in charge; return the id of the process that loads."""
    server.process.send_signal(signal.SIGHUP)
    successor = int(server.read_until("SIGHUP: process .* is loading").split()[2])
    wait_until(lambda: successor in servers_below(pid))  # at its exec it has no command line
    return successor


def has_ended(pid: int) -> bool:
    """Return whether a process is gone, or left to be waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextlib.contextmanager
def of_systemd(mode: str, checkpoint: Path, listener: socket.socket) -> Iterator[Server]:
    """Start a server that gets a listening socket as from systemd."""
    command = [sys.executable, str(FAKE_ENGINE_SERVER), mode, f"model={checkpoint}", "port=1", "served_model_name=m"]
    os.set_inheritable(listener.fileno(), True)
    process = subprocess.Popen(
        ["sh", "-c", f"exec 3<&0 0</dev/null; {RUN}", "sh", *command],
        stdin=listener.fileno(),  # a redirection of the shell makes it descriptor 3
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LISTEN_FDS": "1"},
        text=True,
        start_new_session=True,
    )
    yield from ended_with_its_group(process)


@contextlib.contextmanager
def in_terminal(mode: str, checkpoint: Path, terminal: int, **flags: str) -> Iterator[Server]:
    """Start a server in the foreground of a terminal, which is closed here."""
    take = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    given = {"model": str(checkpoint), "port": "0", "served_model_name": "m", **flags}
    command = [sys.executable, str(FAKE_ENGINE_SERVER), mode, *(f"{name}={value}" for name, value in given.items())]
    process = subprocess.Popen(
        [sys.executable, "-c", take, *command],
        stdin=terminal,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        start_new_session=True,
    )
    os.close(terminal)
    yield from ended_with_its_group(process)


def ended_with_its_group(process: "subprocess.Popen[str]") -> Iterator[Server]:
    """Yield the server of a process; then end all generations, which share its process group."""
    try:
        yield Server(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
