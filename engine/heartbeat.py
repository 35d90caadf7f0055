"""A counter in memory that two processes share: the engine's signs of life, which the API process watches.

Whatever shows that the engine goes on moves it: each turn of its loop, also of an idle one, each tensor that is loaded,
each layer, and inside a kernel each task. What it counts means nothing; it moves or it stands.
"""

import ctypes
import mmap
import os


class Heartbeat:
    """One counter. Only the thread that runs the engine writes it: nobody has to wait, and nothing is lost."""

    def __init__(self, fd: int | None = None) -> None:
        """Of the memory behind `fd`; None: new memory, at 0. The descriptor is the object's own from then on."""
        self.fd = os.memfd_create("smoe-heartbeat") if fd is None else fd
        if fd is None:
            os.truncate(self.fd, mmap.PAGESIZE)
        self.counter = ctypes.c_uint64.from_buffer(mmap.mmap(self.fd, mmap.PAGESIZE))

    def beat(self) -> None:
        """The engine goes on. Behind the largest number comes 0."""
        self.counter.value += 1

    @property
    def count(self) -> int:
        """How far it is. 0: nobody has moved it yet."""
        return self.counter.value

    def close(self) -> None:
        """Gives the descriptor back; the memory stays as long as it is referred to. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1
