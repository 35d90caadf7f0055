"""server/sandbox/worker_handle.py: a worker's end is explained by its status and by what it wrote."""

import signal

import pytest

from server.sandbox.errors import Crashed, Killed, RanOutOfMemory, SandboxError, TookTooLong
from server.sandbox.worker_handle import reason_of_end


@pytest.mark.parametrize(
    ("status", "stderr", "error"),
    [
        (-signal.SIGPROF, b"", TookTooLong),
        (-signal.SIGXCPU, b"", TookTooLong),
        (-signal.SIGKILL, b"", Killed),
        (-signal.SIGABRT, b"memory allocation of 1048576 bytes failed", RanOutOfMemory),
        (-signal.SIGABRT, b"terminate called after throwing an instance of 'std::bad_alloc'", RanOutOfMemory),
        (1, b"Traceback ...\nMemoryError\n", RanOutOfMemory),
        (-signal.SIGABRT, b"panicked at src/lib.rs:1", Crashed),
        (-signal.SIGSEGV, b"", Crashed),
        (0, b"", Crashed),
    ],
)
def test_each_end_has_its_reason(status: int, stderr: bytes, error: type[SandboxError]) -> None:
    assert type(reason_of_end(status, stderr)) is error
