"""System calls on memory that Python's mmap module does not have. Linux only.

Sources: man 2 mmap, madvise and mlock.
"""

import ctypes
import mmap
import os
from ctypes import c_int, c_long, c_size_t, c_void_p

MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000
MAP_FAILED = 2 ** (8 * ctypes.sizeof(c_void_p)) - 1
PROT_NONE = 0
MADV_POPULATE_READ = 22  # Linux 5.14: map all pages now, reading those that are not in memory

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype, _libc.mmap.argtypes = c_void_p, (c_void_p, c_size_t, c_int, c_int, c_int, c_long)
_libc.munmap.argtypes = (c_void_p, c_size_t)
_libc.madvise.argtypes = (c_void_p, c_size_t, c_int)
_libc.mlock.argtypes = (c_void_p, c_size_t)


def reserve(num_bytes: int) -> int:
    """Return the first of so many unused addresses, which take no memory. Raises OSError."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    address: int = _libc.mmap(None, num_bytes, PROT_NONE, flags, -1, 0)
    if address == MAP_FAILED:
        raise _last_error()
    return address


def unmap(address: int, num_bytes: int) -> None:
    """Give back addresses and what is mapped there."""
    _libc.munmap(address, num_bytes)


def map_file_at(address: int, num_bytes: int, descriptor: int) -> None:
    """Map the beginning of a file, shared and read-only, in place of what is mapped at `address`. Raises OSError."""
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
