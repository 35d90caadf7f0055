"""Files that are read past the page cache, so that what is read takes memory only where it is wanted. No torch."""

import errno
import mmap
import os
from pathlib import Path

from model.checkpoint.errors import CheckpointError
from model.checkpoint.pack.header import PAGE_BYTES


def open_direct(file: Path) -> int:
    """Open a file for direct reads of whole pages; for other reads where the file system has no direct ones.

    Return the descriptor. Raises CheckpointError.
    """
    try:
        descriptor = _open(file, getattr(os, "O_DIRECT", 0))
        if descriptor is None:
            descriptor = _open(file, 0)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    assert descriptor is not None, "only direct reads are refused"
    return descriptor


def open_cached(file: Path) -> int:
    """Open a file for reads through the page cache. Return the descriptor. Raises CheckpointError."""
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None


def _open(file: Path, flag: int) -> int | None:
    """Open the file and read its first page; None if the file system refuses reads of this kind."""
    descriptor = None
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | flag)
        with mmap.mmap(-1, PAGE_BYTES) as page:
            os.preadv(descriptor, [page], 0)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        if flag and error.errno == errno.EINVAL:
            return None
        raise
    return descriptor
