"""React to SIGHUP: start a new process, and hand over to it when it is ready."""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Awaitable, Callable

from server.fairness.event_loop import BackgroundTasks
from server.http.limits.read_limiter import resolve
from server.lifecycle.restart.keeper import Servers, become_keeper, become_subreaper, stop_order
from server.lifecycle.restart.predecessor import Inheritance
from server.lifecycle.restart.successor import Successor
from server.lifecycle.restart.terminal import ControllingTerminal
from server.lifecycle.startup_report import StartupReport

POLL_S = 1.0  # between looks at a process whose end the system cannot tell: Linux before 5.3, or no free descriptor


class Reload:
    """The way from one process of the server to the next."""

    def __init__(
        self,
        listener: socket.socket,
        report: StartupReport,
        inherited: Inheritance,
        *,
        timeout_s: float,
        hand_over: Callable[[], Awaitable[None]],
        on_hangup: Callable[[signal.Signals], None],
        on_lost: Callable[[], None],
    ) -> None:
        """`hand_over` is called once, when a new process accepts connections; `on_hangup` when the terminal is gone,
        `on_lost` when all that have taken over have ended."""
        self.is_handed_over = False
        self._listener = listener
        self._report = report
        self._timeout_s = timeout_s
        self._inherited = inherited
        self._first_process_fd = inherited.first_process_fd
        self._hand_over = hand_over
        self._on_hangup = on_hangup
        self._on_lost = on_lost
        self._terminal = ControllingTerminal()
        self._successor: Successor | None = None
        self._servers: Servers | None = None  # those after this process, once there was one
        self._order = 0  # what they have been told of a stop
        self._tasks = BackgroundTasks(lambda error: report.line(f"SIGHUP: {error}"))

    def on_signal(self) -> None:
        """Start a new process, or pass the signal on to the one in charge."""
        if self._terminal.is_gone():
            self._on_hangup(signal.SIGHUP)
        elif self.is_handed_over:
            self._send(signal.SIGHUP)
        elif self._successor is not None:
            self._report.line("SIGHUP: a new process is loading already")
        else:
            self._start()

    def pass_on(self, signum: signal.Signals, *, is_urgent: bool) -> None:
        """Let the processes after this one stop too: those that load, and those that become its children later."""
        self._order = stop_order(signum, is_urgent=is_urgent)
        self._send(self._order)

    def close(self) -> None:
        """End a process that has not taken over."""
        if not self.is_handed_over:
            self._send(signal.SIGKILL)

    def finish(self) -> None:
        """The last act of a process that has handed over and is drained. Never returns in the first one."""
        if not self.is_handed_over or self._servers is None:
            return
        if not self._inherited.has_predecessor:
            become_keeper(self._order)
        self._servers.pass_on_held()

    def _send(self, signum: int) -> None:
        """Send a signal to those after this one: the next has ended once it has handed over and is drained."""
        if self._servers is not None:
            self._servers.send(signum)

    def _start(self) -> None:
        """Start the new process at once: a second signal may come before any task of the event loop runs."""
        try:
            if self._first_process_fd is None:
                self._first_process_fd = own_process_fd()
            if self._servers is None:
                self._servers = Servers()
            self._successor = Successor(self._listener, self._inherited.listener_name, self._first_process_fd)
        except OSError as error:
            self._report.line(f"SIGHUP: no new process can be started: {error.strerror}")
            return
        self._report.line(f"SIGHUP: process {self._successor.pid} is loading and takes over when it is ready")
        self._tasks.spawn(self._hand_over_to(self._successor))

    async def _hand_over_to(self, successor: Successor) -> None:
        if await successor.wait_ready(self._timeout_s):
            self._report.line(f"SIGHUP: process {successor.pid} has taken over; running requests finish here")
            self.is_handed_over = True
            become_subreaper()  # from now on the generations after the next are this process' children, too
            assert self._servers is not None
            self._tasks.spawn(self._watch(self._servers))
            await self._hand_over()
        else:
            self._report.line("SIGHUP: the new process did not become ready; this one goes on")
            self._successor = None

    async def _watch(self, servers: Servers) -> None:
        """Wait until no process is left that has taken over: then nobody accepts connections."""
        while pids := servers.pids():
            if self._order:
                servers.send(self._order)  # again: a new child's parent may have ended before it could pass it on
            await wait_ended(pids[0])
        self._on_lost()


def own_process_fd() -> int | None:
    """Return a descriptor that becomes readable when this process ends; None where the system has none (Linux 5.3)."""
    try:
        return os.pidfd_open(os.getpid())
    except OSError:
        return None


async def wait_ended(pid: int) -> None:
    """Wait for the end of a child, which stays for others to reap; where the system cannot tell it, for POLL_S."""
    try:
        process_fd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno != errno.ESRCH:
            await asyncio.sleep(POLL_S)
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(process_fd, resolve, ended)
    try:
        await ended
    finally:
        loop.remove_reader(process_fd)
        os.close(process_fd)
