"""React to SIGHUP: start a new process, and hand over to it when it is ready."""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Awaitable, Callable

from server.fairness.event_loop import BackgroundTasks
from server.http.limits.read_limiter import resolve
from server.lifecycle.restart.keeper import become_subreaper, send_to, servers
from server.lifecycle.restart.successor import Successor
from server.lifecycle.restart.terminal import ControllingTerminal
from server.lifecycle.startup_report import StartupReport


class Reload:
    """The way from one process of the server to the next."""

    def __init__(
        self,
        listener: socket.socket,
        report: StartupReport,
        *,
        timeout_s: float,
        first_process_fd: int | None,
        hand_over: Callable[[], Awaitable[None]],
        on_hangup: Callable[[signal.Signals], None],
        on_lost: Callable[[], None],
    ) -> None:
        """`first_process_fd`: None: this process is the first. `hand_over` is called once, when a new process accepts
        connections; `on_hangup` when the terminal is gone, `on_lost` when all that have taken over have ended."""
        self.is_handed_over = False
        self._listener = listener
        self._report = report
        self._timeout_s = timeout_s
        self._first_process_fd = first_process_fd
        self._hand_over = hand_over
        self._on_hangup = on_hangup
        self._on_lost = on_lost
        self._terminal = ControllingTerminal()
        self._successor: Successor | None = None
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

    def pass_on(self, signum: signal.Signals) -> None:
        """Send a signal to the new process, also while it loads, unless the terminal has sent it to both."""
        if signum != signal.SIGINT or not self._terminal.sends_interrupts():
            self._send(signum)

    def close(self) -> None:
        """End a process that has not taken over."""
        if not self.is_handed_over:
            self._send(signal.SIGKILL)

    def _send(self, signum: int) -> None:
        """Send a signal to those after this one: the next has ended once it has handed over and is drained."""
        if self._successor is not None:
            send_to(servers(), signum)

    def _start(self) -> None:
        """Start the new process at once: a second signal may come before any task of the event loop runs."""
        try:
            if self._first_process_fd is None:
                self._first_process_fd = own_process_fd()
            self._successor = Successor(self._listener, self._first_process_fd)
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
            self._tasks.spawn(self._watch_servers())
            await self._hand_over()
        else:
            self._report.line("SIGHUP: the new process did not become ready; this one goes on")
            self._successor = None

    async def _watch_servers(self) -> None:
        """Wait until no process is left that has taken over: then nobody accepts connections."""
        while pids := servers():
            if not await wait_ended(pids[0]):
                return
        self._on_lost()


def own_process_fd() -> int | None:
    """Return a descriptor that becomes readable when this process ends; None where the system has none (Linux 5.3)."""
    try:
        return os.pidfd_open(os.getpid())
    except OSError:
        return None


async def wait_ended(pid: int) -> bool:
    """Wait for the end of a child, which stays for others to reap. False where the system cannot tell (Linux 5.3)."""
    try:
        process_fd = os.pidfd_open(pid)
    except OSError as error:
        return error.errno == errno.ESRCH
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(process_fd, resolve, ended)
    try:
        await ended
    finally:
        loop.remove_reader(process_fd)
        os.close(process_fd)
    return True
