"""Processes that a server under test has started."""

import os
import resource
import signal
from contextlib import suppress
from pathlib import Path

from tests.support.conditions import wait_until


def engine_pid_of(server_pid: int) -> int:
    """Return the process id of a server's engine: its child that is not the sandbox's fork server."""
    [engine] = [pid for pid in _children(server_pid) if not _is_sandbox(pid)]
    return engine


def sandbox_pids_of(server_pid: int) -> list[int]:
    """Return the process ids of a server's sandbox: the fork server, then its workers."""
    [fork_server] = filter(_is_sandbox, _children(server_pid))
    return [fork_server, *_children(fork_server)]


def open_sandbox_of(server_pid: int) -> list[int]:
    """Return a pidfd for each process of a server's sandbox."""
    while True:
        with suppress(ProcessLookupError):  # a server that becomes ready replaces its workers
            return [os.pidfd_open(pid) for pid in sandbox_pids_of(server_pid)]


def stop_sandbox_of(server_pid: int) -> list[int]:
    """Stop all processes of a server's sandbox, and return a pidfd for each.

    The fork server stops first, so that it replaces no worker. A worker that it has just forked runs on until it has
    asked the kernel to end with the fork server: stopped before that, it would outlive it.
    """
    fork_server, *_ = sandbox_pids_of(server_pid)
    os.kill(fork_server, signal.SIGSTOP)
    wait_until(lambda: state_of(fork_server) == "T")
    _, *workers = sandbox_pids_of(server_pid)
    wait_until(lambda: all(state_of(pid) == "Z" or _serves_jobs(pid) for pid in workers))
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    return open_sandbox_of(server_pid)


def state_of(pid: int) -> str:
    """The process' state in /proc: "T" is stopped, "Z" has ended; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _serves_jobs(worker_pid: int) -> bool:
    """Return whether a worker is behind its start, where it limits the files that it may write to none."""
    return resource.prlimit(worker_pid, resource.RLIMIT_FSIZE) == (0, 0)


def _children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _is_sandbox(pid: int) -> bool:
    """Return whether the command line names the sandbox; where the process was forked, its own name does."""
    folder = Path(f"/proc/{pid}")
    return any(b"server.sandbox" in (folder / name).read_bytes() for name in ("cmdline", "comm"))
