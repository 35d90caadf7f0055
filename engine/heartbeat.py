"""Heartbeat of the engine: a counter in memory shared with the API process, which watches it.

Every sign of progress increments it: each turn of the engine's loop (idle ones too), each loaded tensor, each layer,
and each task inside a kernel. Only the change counts; the value has no meaning.
"""

import ctypes
import mmap
import os


class Heartbeat:
    """One counter, written only by the thread that runs the engine: no lock is needed and no beat is lost."""

    def __init__(self, fd: int | None = None) -> None:
        """Map the memory behind `fd`, or new memory with the counter at 0 if `fd` is None. Owns the descriptor."""
        self.fd = os.memfd_create("smoe-heartbeat") if fd is None else fd
        if fd is None:
            os.truncate(self.fd, mmap.PAGESIZE)
        self.counter = ctypes.c_uint64.from_buffer(mmap.mmap(self.fd, mmap.PAGESIZE))

    def beat(self) -> None:
        """Increment the counter; it wraps around at 2**64."""
        self.counter.value += 1

    @property
    def count(self) -> int:
        """Value of the counter; 0 before the first beat."""
        return self.counter.value

    def close(self) -> None:
        """Close the descriptor; the memory lives as long as it is referenced. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1
