"""The bytes of a pack's file as memory: mapped, locked or copied."""

import contextlib
import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from model.checkpoint.errors import CheckpointError
from model.ops.huge_pages import HUGE_PAGE_BYTES, empty
from model.pack.system_calls import MADV_POPULATE_READ, advise, lock_memory, map_file_at, reserve, unmap

WeightMemory = Literal["map", "copy", "lock"]

PIECE_BYTES = 8 << 20  # that a thread reads or maps at a time
LOCKED_BYTES = 256 << 20  # at a time: a slow disk must not keep an engine silent for longer than it may be
NUM_READERS = 8  # a disk needs several requests of a megabyte at once to reach its speed


def mapped_file(file: Path, num_bytes: int) -> Tensor:
    """Map a file, shared with every process that maps it, at an address that huge pages need: [num_bytes] uint8.

    Nothing is read; the system reads pages when they are used, and drops them when memory is short. Writing to the
    tensor ends the process, and so does reading where the file was cut meanwhile. Raises CheckpointError.
    """
    try:
        memory = _reserved(num_bytes)
        with file.open("rb") as stream:
            map_file_at(memory.data_ptr(), num_bytes, stream.fileno())
    except OSError as error:
        raise CheckpointError(f"{file} cannot be mapped: {error.strerror}") from None
    with contextlib.suppress(OSError):  # a kernel without large pages of files
        advise(memory.data_ptr(), num_bytes, mmap.MADV_HUGEPAGE)
    return memory


def _reserved(num_bytes: int) -> Tensor:
    """Reserve addresses that start at a huge page, and give them back with the last view of the tensor."""
    size = num_bytes + HUGE_PAGE_BYTES
    address = reserve(size)
    addresses = (ctypes.c_uint8 * size).from_address(address)
    weakref.finalize(addresses, unmap, address, size).atexit = False  # other threads may still read
    first = -address % HUGE_PAGE_BYTES
    return torch.frombuffer(addresses, dtype=torch.uint8)[first : first + num_bytes]


def lock(parts: Sequence[Tensor], file: Path, on_progress: Callable[[int, int], None]) -> None:
    """Read all pages of parts of a mapped file and keep them in memory. Raises CheckpointError with the way out."""
    num_bytes, done = sum(part.nbytes for part in parts), 0
    try:
        for piece in _pieces(parts, LOCKED_BYTES):
            lock_memory(piece.data_ptr(), piece.nbytes)
            done += piece.nbytes
            on_progress(done, num_bytes)
    except OSError as error:
        raise CheckpointError(
            f"--weights-memory lock: the system does not lock {num_bytes} bytes of {file} ({error.strerror}); "
            "raise the limit (ulimit -l, LimitMEMLOCK=), or use --weights-memory map"
        ) from None


def copied_file(file: Path, num_bytes: int, on_progress: Callable[[int, int], None]) -> Tensor:
    """Read a file into own memory, by several threads: [num_bytes] uint8. Raises CheckpointError and MemoryError."""
    memory = empty(num_bytes, torch.uint8)
    content, done = memory.numpy().data, 0
    try:
        with file.open("rb", buffering=0) as stream, ThreadPoolExecutor(NUM_READERS, "read") as threads:
            pieces = [content[first : first + PIECE_BYTES] for first in range(0, num_bytes, PIECE_BYTES)]
            reads = [
                threads.submit(_read, stream.fileno(), piece, index * PIECE_BYTES) for index, piece in enumerate(pieces)
            ]
            for read in as_completed(reads):
                done += read.result()
                on_progress(done, num_bytes)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    if done != num_bytes:
        raise CheckpointError(f"{file} ended while it was read: {done} of {num_bytes} bytes")
    return memory


def copied_part(part: Tensor) -> Tensor:
    """Copy a part of a mapped file into own memory. Raises MemoryError."""
    return empty(part.numel(), part.dtype).view(part.shape).copy_(part)


class BackgroundReader:
    """Reads parts of a mapped file ahead of their use, in order, while the engine already serves."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        # As numbers: a thread of a process that ends must not be in torch, whose frames it could not leave.
        self._pieces = [(piece.data_ptr(), piece.nbytes) for piece in _pieces(parts, PIECE_BYTES)]
        self._parts = parts  # keeps the mapping
        self._next = 0
        self._lock = threading.Lock()
        self.done = threading.Event()  # all threads have ended
        self._running = NUM_READERS
        self._on_end: Callable[[], None] = lambda: None

    def start(self, on_end: Callable[[], None] = lambda: None) -> None:
        """Start the threads. They end with the process, and when a page cannot be read; the last one calls `on_end`."""
        self._on_end = on_end
        for index in range(NUM_READERS):
            threading.Thread(target=self._run, name=f"read-ahead-{index}", daemon=True).start()

    def _run(self) -> None:
        try:
            while (piece := self._take()) is not None:
                advise(*piece, MADV_POPULATE_READ)
        except OSError:
            pass  # an older kernel, or a page that is gone: whoever needs it will see that
        finally:
            with self._lock:
                self._running -= 1
                is_last = not self._running
            if is_last:
                try:
                    self._on_end()
                finally:
                    self.done.set()

    def _take(self) -> tuple[int, int] | None:
        with self._lock:
            if self._next == len(self._pieces):
                return None
            self._next += 1
            return self._pieces[self._next - 1]


def _pieces(parts: Sequence[Tensor], num_bytes: int) -> Iterator[Tensor]:
    """Yield the bytes of all parts, up to `num_bytes` at a time."""
    for part in parts:
        content = part.flatten().view(torch.uint8)
        yield from (content[first : first + num_bytes] for first in range(0, len(content), num_bytes))


def _read(descriptor: int, piece: memoryview, position: int) -> int:
    """Read until the piece is full or the file ends; return the bytes read."""
    done = 0
    while done < len(piece) and (count := os.preadv(descriptor, [piece[done:]], position + done)):
        done += count
    return done
