"""Processes that a server under test has started."""

from pathlib import Path


def engine_pid_of(server_pid: int) -> int:
    """Return the process id of a server's engine: its child that is not the sandbox's fork server."""
    children = Path(f"/proc/{server_pid}/task/{server_pid}/children").read_text().split()
    [engine] = [pid for pid in children if b"server.sandbox" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return int(engine)


def sandbox_pids_of(server_pid: int) -> list[int]:
    """Return the process ids of a server's sandbox: the fork server, then its workers."""
    children = Path(f"/proc/{server_pid}/task/{server_pid}/children").read_text().split()
    [fork_server] = [pid for pid in children if b"server.sandbox" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    workers = Path(f"/proc/{fork_server}/task/{fork_server}/children").read_text().split()
    return [int(fork_server), *map(int, workers)]
