"""Keep the process id of the first server: wait for the processes that have taken over, pass signals on to them.

Whoever started the server (systemd, a container, a shell) knows only the first process. Once that one is drained, it
becomes this program by exec, which keeps its process id. A later generation becomes this one's child when the one
before it ends, because this process is a subreaper; so are processes whose parent was killed, which are reaped here.

Run as a script without the rest of the package: it lives as long as the server and should stay small.
"""

import contextlib
import ctypes
import os
import signal
import sys
from typing import NoReturn

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_CHILD_SUBREAPER = 36
KILLED = 128  # exit code of a process that a signal ended, plus the signal's number, as shells report it


def become_subreaper() -> None:
    """Let the kernel make this process the parent of orphaned descendants; exec keeps that."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def hold_signals() -> None:
    """Let signals wait until the keeper takes them: without a handler they would end this process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})


def become_keeper() -> NoReturn:
    """Replace this process by the keeper of its children. Never returns. Call `hold_signals` before."""
    os.execv(sys.executable, [sys.executable, "-I", "-S", __file__])


def servers() -> list[int]:
    """Return the ids of the live children in this process group: servers that have taken over, or load.

    Engines and sandboxes have groups of their own. Children that have ended are left to whoever waits for them.
    """
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        return [pid for pid in map(int, children.read().split()) if _is_live_server(pid)]


def _is_live_server(pid: int) -> bool:
    try:
        is_server = os.getpgid(pid) == os.getpgrp()
        return is_server and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except (ProcessLookupError, ChildProcessError):
        return False


def send_to(pids: list[int], signum: int) -> None:
    """Send a signal to processes, except those that have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def main() -> int:
    """Wait until no server is left; return the exit code of the last one."""
    exit_code = 0
    while True:
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            is_server = os.getpgid(ended.si_pid) == os.getpgrp()
            code = os.waitstatus_to_exitcode(os.waitpid(ended.si_pid, 0)[1])
            exit_code = exit_code if not is_server else KILLED - code if code < 0 else code
            if not _has_server():
                return exit_code
        _pass_on(signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD}))


def _has_server() -> bool:
    """Return whether a child in this process group is left, ended or not."""
    try:
        os.waitid(os.P_PGID, os.getpgrp(), os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _pass_on(received: signal.struct_siginfo) -> None:
    """Send the signal to the servers, unless the terminal has sent it to them too."""
    if received.si_signo != signal.SIGCHLD and received.si_code <= 0:  # above 0: from the kernel
        send_to(servers(), received.si_signo)


if __name__ == "__main__":
    sys.exit(main())
