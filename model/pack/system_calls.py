"""System calls on memory that Python's mmap module does not have. Linux only.

Sources: man 2 mmap, madvise and mlock.
"""

import ctypes
import mmap
import os
from ctypes import c_int, c_long, c_size_t, c_void_p

MAP_FIXED = 0x10
MADV_POPULATE_READ = 22  # Linux 5.14: map all pages now, reading those that are not in memory

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype, _libc.mmap.argtypes = c_void_p, (c_void_p, c_size_t, c_int, c_int, c_int, c_long)
_libc.madvise.argtypes = (c_void_p, c_size_t, c_int)
_libc.mlock.argtypes = (c_void_p, c_size_t)


def map_file_at(address: int, num_bytes: int, descriptor: int) -> None:
    """Map the beginning of a file, shared and read-only, in place of whatever is mapped at `address`. Raises OSError."""
    flags = mmap.MAP_SHARED | MAP_FIXED
    if _libc.mmap(address, num_bytes, mmap.PROT_READ, flags, descriptor, 0) != address:
        raise _last_error()


def advise(address: int, num_bytes: int, advice: int) -> None:
    """Call madvise. The interpreter's lock is free meanwhile. Raises OSError."""
    if _libc.madvise(address, num_bytes, advice):
        raise _last_error()


def lock_memory(address: int, num_bytes: int) -> None:
    """Read all pages into memory and keep them there. Raises OSError if the process may not lock so much."""
    if _libc.mlock(address, num_bytes):
        raise _last_error()


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
