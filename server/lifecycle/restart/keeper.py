"""Keep the process id of the first server: wait for the processes that have taken over, pass signals on to them.

Whoever started the server (systemd, a container, a shell) knows only the first process. Once that one is drained, it
becomes this program by exec, which keeps its process id. A later generation becomes this one's child when the one
before it ends, because this process is a subreaper; so are processes whose parent was killed, which are reaped here.

Run as a script without the rest of the package: it lives as long as the server and should stay small.
"""

import contextlib
import ctypes
import io
import os
import signal
import sys
from typing import NoReturn

STOPS = (signal.SIGTERM, signal.SIGINT)
PASSED_ON = (*STOPS, signal.SIGHUP)
ORDERS: dict[tuple[int, bool], int] = {  # see stop_order()
    (signal.SIGTERM, False): signal.SIGRTMIN,
    (signal.SIGTERM, True): signal.SIGRTMIN + 1,
    (signal.SIGINT, False): signal.SIGRTMIN + 2,
    (signal.SIGINT, True): signal.SIGRTMIN + 3,
}
PR_SET_CHILD_SUBREAPER = 36
KILLED = 128  # exit code of a process that a signal ended, plus the signal's number, as shells report it


def become_subreaper() -> None:
    """Let the kernel make this process the parent of orphaned descendants; exec keeps that."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def stop_order(signum: int, *, is_urgent: bool) -> int:
    """Return the signal that tells a server of a stop by SIGTERM or SIGINT; `is_urgent`: by the second such signal.

    A server counts the signals that others send. They may reach its whole group, so that it counts them itself; and
    one that is sent to a process that just ends is lost, and must be repeated. Orders may come any number of times.
    """
    return ORDERS[signum, is_urgent]


def hold_orders() -> None:
    """Let orders wait for the end of this process: without a handler one that is repeated would be its exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ORDERS.values())


def hold_signals() -> None:
    """Let signals wait until the keeper takes them: without a handler they would end this process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})


def become_keeper(order: int = 0) -> NoReturn:
    """Replace this process by the keeper of its children. Never returns. Call `hold_signals` before.

    `order`: what the servers have been told, and those that become children later must be; 0: nothing.
    """
    os.execv(sys.executable, [sys.executable, "-I", "-S", __file__, str(order)])


class Servers:
    """The live children in this process group: servers that have taken over, or load.

    Engines and sandboxes have groups of their own. Children that have ended are left to whoever waits for them.
    """

    def __init__(self) -> None:
        """Open the system's list of children: later there may be no free descriptor. Raises OSError."""
        self._children = io.FileIO(f"/proc/self/task/{os.getpid()}/children")

    def pids(self) -> list[int]:
        """Return the process ids."""
        self._children.seek(0)
        return [pid for pid in map(int, self._children.readall().split()) if _is_live_server(pid)]

    def send(self, signum: int) -> None:
        """Send a signal to all that have not ended."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def pass_on_held(self) -> None:
        """Send the signals that have come since `hold_signals`."""
        for signum in signal.sigpending() & {*PASSED_ON}:
            self.send(signum)


def _is_live_server(pid: int) -> bool:
    try:
        is_server = os.getpgid(pid) == os.getpgrp()
        return is_server and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except (ProcessLookupError, ChildProcessError):
        return False


def main(order: int) -> int:
    """Wait until no server is left; return the exit code of the last one. `order`: see become_keeper()."""
    servers = Servers()
    exit_code = 0
    while True:
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            is_server = os.getpgid(ended.si_pid) == os.getpgrp()
            code = os.waitstatus_to_exitcode(os.waitpid(ended.si_pid, 0)[1])
            exit_code = exit_code if not is_server else KILLED - code if code < 0 else code
            if not _has_server():
                return exit_code
        if order:
            servers.send(order)  # again: one that has just become a child may not have got it
        received = signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD})
        if received.si_signo in STOPS:
            order = stop_order(received.si_signo, is_urgent=order != 0)
        elif received.si_signo == signal.SIGHUP and received.si_code <= 0:  # above 0: the terminal's end, for all
            servers.send(signal.SIGHUP)


def _has_server() -> bool:
    """Return whether a child in this process group is left, ended or not."""
    try:
        os.waitid(os.P_PGID, os.getpgrp(), os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(int(*sys.argv[1:])))  # an earlier version gives no order
