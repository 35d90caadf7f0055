"""The fork server: `python -m tests.support.forked FD`, with FD the socket to the process that uses it.

It imports the product, runs nothing of it, has one thread, and ends when its socket is closed.
"""

import gc
import importlib
import os
import socket
import sys
import time

from tests.support.forked.child import become, run_program
from tests.support.forked.messages import Start, receive
from tests.support.forked.standby import prepare_launches
from tests.support.paths import FAKE_ENGINE_SERVER

# Programs, and what they import only when they need it.
PRODUCT = (
    "server.cli.main",
    "server.cli.serve",
    "server.lifecycle.server",
    "server.sandbox.process",
    "engine.process",
)
PAUSE_S = 0.001


def main() -> None:
    """Serve until the socket is closed. In each forked process: run its program."""
    for module in PRODUCT:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # collections in the forked processes do not touch these pages, so they stay shared
    start = serve(socket.socket(fileno=int(sys.argv[1])))
    if start is not None and launches_processes(start):
        start = prepare_launches() or start
    if start is not None:
        run_program(start.words)


def serve(control: socket.socket) -> Start | None:
    """Fork a process for each start that arrives, and answer with its id. Returns its start in each of them, and None
    here at the end of the socket."""
    while (received := receive(control)) is not None:
        start, fds = received
        pid = fork_orphan()
        if pid == 0:
            control.detach()
            become(start, fds)
            return start
        for fd in fds:
            os.close(fd)
        control.send(str(pid).encode())
    return None


def fork_orphan() -> int:
    """Fork a process whose parent has ended when this returns. Returns its id here, and 0 in it."""
    reader, writer = os.pipe()
    between = os.fork()
    if between == 0:
        between = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os.close(writer)
            while os.getppid() == between:
                time.sleep(PAUSE_S)
            return 0
        os.write(writer, str(pid).encode())
        os._exit(0)
    os.waitpid(between, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return int(pipe.read())


def launches_processes(start: Start) -> bool:
    """Return whether the program is a server."""
    return start.words[:3] == ["-m", "server", "serve"] or str(FAKE_ENGINE_SERVER) in start.words[:2]


if __name__ == "__main__":
    main()
