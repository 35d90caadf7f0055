"""Processes that a server under test has started."""

from pathlib import Path


def engine_pid_of(server_pid: int) -> int:
    """Return the process id of a server's engine: its child that is not the sandbox's fork server."""
    [engine] = [pid for pid in _children(server_pid) if not _is_sandbox(pid)]
    return engine


def sandbox_pids_of(server_pid: int) -> list[int]:
    """Return the process ids of a server's sandbox: the fork server, then its workers."""
    [fork_server] = filter(_is_sandbox, _children(server_pid))
    return [fork_server, *_children(fork_server)]


def _children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _is_sandbox(pid: int) -> bool:
    """Return whether the command line names the sandbox; where the process was forked, its own name does."""
    folder = Path(f"/proc/{pid}")
    return any(b"server.sandbox" in (folder / name).read_bytes() for name in ("cmdline", "comm"))
