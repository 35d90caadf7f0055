"""An engine process ends with its parent before it has imported torch. A torch that never ends its import is used."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TIMEOUT_MS = 60_000
PARENT = """
import os, signal, socket, subprocess, sys
ours, theirs = socket.socketpair()
fd = str(theirs.fileno())
command = [*sys.argv[1:], sys.executable, "-m", "engine.process", fd, fd, str(os.getpid())]
child = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
if sys.argv[1:]:
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
print(child.pid, flush=True)
signal.pause()
"""
STOPPED_FIRST = ("sh", "-c", 'kill -STOP $$; exec "$@"', "sh")  # the rest of the command runs after SIGCONT


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment whose torch creates the file `importing` and waits forever."""
    torch = f"import pathlib, signal\npathlib.Path({str(tmp_path / 'importing')!r}).touch()\nsignal.pause()\n"
    (tmp_path / "torch.py").write_text(torch)
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])}


@contextmanager
def started(environment: dict[str, str], *wrapper: str) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Yield the parent with the engine's pid and a descriptor of the engine, which is killed at the end."""
    command = [sys.executable, "-c", PARENT, *wrapper]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        engine = os.pidfd_open(pid)
        try:
            yield parent, pid, engine
        finally:
            parent.kill()
            if not has_ended(engine, 0):
                signal.pidfd_send_signal(engine, signal.SIGKILL)
            os.close(engine)


def has_ended(engine: int, timeout_ms: int) -> bool:
    """Wait until the process has ended or the time is over; return True if it has ended."""
    readable = select.poll()
    readable.register(engine, select.POLLIN)
    return bool(readable.poll(timeout_ms))


def test_an_engine_that_imports_torch_does_not_outlive_its_parent(environment: dict[str, str], tmp_path: Path) -> None:
    with started(environment) as (parent, _, engine):
        while not (tmp_path / "importing").exists():
            assert not has_ended(engine, 1)
        parent.kill()
        assert has_ended(engine, TIMEOUT_MS), "the engine still runs"


def test_an_engine_whose_parent_ended_before_it_ran_exits(environment: dict[str, str], tmp_path: Path) -> None:
    with started(environment, *STOPPED_FIRST) as (parent, pid, engine):
        parent.kill()
        parent.wait()
        os.kill(pid, signal.SIGCONT)
        assert has_ended(engine, TIMEOUT_MS), "the engine still runs"
        assert not (tmp_path / "importing").exists()
