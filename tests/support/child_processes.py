"""Processes that a server under test has started."""

from pathlib import Path


def engine_pid_of(server_pid: int) -> int:
    """Return the process id of a server's engine: its child that is not the sandbox's fork server."""
    children = Path(f"/proc/{server_pid}/task/{server_pid}/children").read_text().split()
    [engine] = [pid for pid in children if b"server.sandbox" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return int(engine)
