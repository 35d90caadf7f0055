"""Jobs for the sandbox's tests: well-behaved ones, and one for each way to misbehave."""

import contextlib
import os
import signal
import time


def add(left: int, right: int) -> int:
    return left + right


def base(value: int) -> int:
    return value


def process_id() -> int:
    return os.getpid()


def spin() -> int:
    while True:
        pass


def allocate(num_bytes: int) -> int:
    return len(bytearray(num_bytes))


def abort() -> int:
    os.abort()


def leave(code: int) -> int:
    os._exit(code)


def fail(message: str) -> int:
    raise ValueError(message)


def wrong() -> str:
    return "not a number"


def kill_self() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def kill_self_once(path: str) -> int:
    """Be killed the first time, as by the kernel's OOM killer; `path` is a folder that the first time removes."""
    if os.path.isdir(path):
        os.rmdir(path)
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def stop_self() -> int:
    os.kill(os.getpid(), signal.SIGSTOP)
    return 0


def descriptors() -> list[str]:
    """Return what this process has open, besides the folder that is read."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the folder itself, closed by now
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


def session_and_parent() -> list[int]:
    return [os.getsid(0), os.getppid()]


def use_cpu(seconds: float) -> int:
    end_s = time.process_time() + seconds
    while time.process_time() < end_s:
        pass
    return 0


def abort_for_lack_of_memory() -> int:
    """End as Rust does when an allocation fails."""
    os.write(2, b"memory allocation of 4096 bytes failed\n")
    os.abort()


def read_fifo(path: str) -> int:
    """Wait until someone writes to the named pipe, or closes it."""
    with open(path, "rb") as file:
        return len(file.read())
