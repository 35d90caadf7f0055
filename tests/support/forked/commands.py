"""Start commands of the product from tests: as with subprocess, but forked."""

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from tests.support.forked.messages import Start, connect, send
from tests.support.forked.popen import ForkedPopen
from tests.support.paths import ROOT

PR_SET_CHILD_SUBREAPER = 36
PID_BYTES = 16


class ForkServer:
    """The process that has imported the product. It ends with this one."""

    def __init__(self) -> None:
        self._control, theirs = connect()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forked", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # numpy's library starts threads when it is imported
            )

    def fork(self, start: Start, fds: list[int]) -> int:
        """Fork a process; return its id. It becomes a child of this one, which adopts orphans meanwhile."""
        with _adopting_orphans():
            send(self._control, start, fds)
            pid = self._control.recv(PID_BYTES)
        assert pid, "the fork server has ended"
        return int(pid)


_lock = threading.Lock()
_servers: list[ForkServer] = []  # none until the first command


def _fork(start: Start, fds: list[int]) -> int:
    with _lock:
        if not _servers:
            _servers.append(ForkServer())
        return _servers[0].fork(start, fds)


popen = partial(ForkedPopen, fork=_fork)


def run(
    command: Sequence[str], *, input: str | None = None, timeout: float | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as subprocess.run(capture_output=True, text=True, check=False)."""
    pipe = subprocess.PIPE
    stdin = {} if input is None else {"stdin": pipe}
    with popen(command, stdout=pipe, stderr=pipe, text=True, **stdin, **options) as process:
        try:
            output, errors = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
