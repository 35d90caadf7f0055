"""Measure how much of a file is in memory. No torch.

Source: man 2 cachestat (Linux 6.5), whose number is the same on all architectures but alpha.
"""

import ctypes
import mmap
import sys
from pathlib import Path

CACHESTAT = 451
NUM_COUNTERS = 5  # pages cached, dirty, in writeback, evicted, evicted recently


def cached_bytes(file: Path) -> int | None:
    """Return the bytes of a file that are in the page cache, whoever read them; None if the system cannot tell.

    Visits all cached pages: call it in a thread.
    """
    if sys.platform != "linux":
        return None
    whole_file, counters = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * NUM_COUNTERS)()
    try:
        with file.open("rb") as stream:
            if ctypes.CDLL(None).syscall(CACHESTAT, stream.fileno(), whole_file, counters, 0):
                return None
    except OSError:
        return None
    return int(counters[0]) * mmap.PAGESIZE
