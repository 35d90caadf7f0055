"""Start a new process of this server, which inherits its listening socket.

The protocol is systemd's for sockets (sd_listen_fds(3)): descriptors from 3 on, LISTEN_PID, LISTEN_FDS and
LISTEN_FDNAMES. The second descriptor is a pipe on which the new process reports that it is ready, the third one refers
to the first process (pidfd_open(2)).
"""

import asyncio
import fcntl
import os
import signal
import socket
import sys

from server.http.limits.read_limiter import resolve
from server.settings.sources import FIRST_INHERITED_FD, FIRST_PROCESS_NAME, READY_NAME, successor_environment

SHELL = "/bin/sh"
RUN = 'LISTEN_PID=$$ exec "$@"'  # the variable names the process that gets the sockets: only a child knows its id
FREE_FD = 10  # above the inherited descriptors, so that none is overwritten


class Successor:
    """A new process that loads, and takes over when it is ready."""

    def __init__(self, listener: socket.socket, listener_name: str, first_process_fd: int | None) -> None:
        """Start the command line of this process again. `first_process_fd`: of the first process; None: the system has
        no such descriptors. Raises OSError."""
        ready_end, theirs = os.pipe()
        given = {listener_name: listener.fileno(), READY_NAME: theirs, FIRST_PROCESS_NAME: first_process_fd}
        fds = {name: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FREE_FD) for name, fd in given.items() if fd is not None}
        try:
            self.pid = os.posix_spawn(
                SHELL,
                [SHELL, "-c", RUN, "sh", sys.executable, *sys.orig_argv[1:]],
                successor_environment(tuple(fds)),
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, FIRST_INHERITED_FD + i) for i, fd in enumerate(fds.values())],
            )
        except OSError:
            os.close(ready_end)
            raise
        finally:
            for fd in (theirs, *fds.values()):
                os.close(fd)
        self._ready_end = ready_end

    async def wait_ready(self, timeout_s: float) -> bool:
        """Return True once the process is ready. If it ends first or takes longer, it is ended: False."""
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._ready_end, resolve, readable)
        try:
            async with asyncio.timeout(timeout_s):
                await readable
            is_ready = os.read(self._ready_end, 1) != b""
        except TimeoutError:
            is_ready = False
        finally:
            loop.remove_reader(self._ready_end)
            os.close(self._ready_end)
        if not is_ready:
            os.kill(self.pid, signal.SIGKILL)  # it can have ended, but nobody else waits for it
            await asyncio.to_thread(os.waitpid, self.pid, 0)
        return is_ready
