"""Read matrices slice by slice, ahead of their packing, so that a load needs some slices beside the packed weights."""

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from model.checkpoint.stored_tensor import StoredTensor
from model.ops.huge_pages import empty
from model.ops.weights import SLICE_ROWS
from model.stored_weights import NUM_READS, fill_from

# A slice has this many bytes, more if that leaves threads without rows to pack, but at most MAX_SLICE_BYTES.
SLICE_BYTES = 4 << 20
MAX_SLICE_BYTES = 24 << 20


class SliceReader:
    """Reader of slices: threads read the next ones while the caller packs one. Serves one caller at a time.

    Matrices are read in the order in which they are asked for. Memory: NUM_READS + 1 slices, if they are also taken in
    this order; a slice that is taken earlier needs memory of its own. After an error, make a
    new reader.
    """

    def __init__(self, num_packing_threads: int = 1) -> None:
        """`num_packing_threads`: each gets SLICE_ROWS rows of a slice, if they fit into MAX_SLICE_BYTES."""
        self._num_packing_threads = num_packing_threads
        self._threads = ThreadPoolExecutor(NUM_READS, thread_name_prefix="read")
        self._waiting: deque[_Slice] = deque()
        self._num_started = 0  # slices that have a buffer
        # The same pages for every tensor: touching new ones would take longer than reading.
        self._free_buffers: list[Tensor] = []

    def read(self, stored: StoredTensor) -> Iterator[Tensor]:
        """Start to read a matrix; return its rows in order: [rows, bytes of a row], uint8.

        Each slice has a multiple of SLICE_ROWS rows, but the last one; it is valid until the next one is asked for.
        The iterator raises CheckpointError where the first slice follows that could not be read.
        """
        num_rows, step = stored.shape[0], self._rows_of_slice(stored)
        slices = [_Slice(stored, first, min(step, num_rows - first)) for first in range(0, num_rows, step)]
        self._waiting.extend(slices)
        self._start_reads()
        return self._take(slices)

    def _rows_of_slice(self, stored: StoredTensor) -> int:
        panel_bytes = SLICE_ROWS * (stored.num_bytes // stored.shape[0])
        for_all_threads = min(self._num_packing_threads * panel_bytes, MAX_SLICE_BYTES)
        return max(1, max(for_all_threads, SLICE_BYTES) // panel_bytes) * SLICE_ROWS

    def _take(self, slices: list["_Slice"]) -> Iterator[Tensor]:
        for piece in slices:
            if piece.content is None:
                self._waiting.remove(piece)
                self._start(piece)
            assert piece.content is not None
            try:
                yield piece.content.result()
            finally:
                self._free_buffers.append(piece.buffer)
                self._num_started -= 1
            self._start_reads()

    def _start_reads(self) -> None:
        while self._waiting and self._num_started <= NUM_READS:
            self._start(self._waiting.popleft())

    def _start(self, piece: "_Slice") -> None:
        buffer = self._free_buffers.pop() if self._free_buffers else None
        if buffer is None or buffer.nbytes < piece.num_bytes:
            buffer = empty(max(piece.num_bytes, SLICE_BYTES), torch.uint8)
        self._num_started += 1
        piece.buffer = buffer
        piece.content = self._threads.submit(piece.read)


class _Slice:
    """Rows first .. first + count - 1 of a matrix."""

    def __init__(self, stored: StoredTensor, first: int, count: int) -> None:
        self._stored = stored
        self._first = first
        self._count = count
        self._row_bytes = stored.num_bytes // stored.shape[0]
        self.num_bytes = count * self._row_bytes
        self.buffer: Tensor
        self.content: Future[Tensor] | None = None  # None: reading has not started

    def read(self) -> Tensor:
        """Fill the buffer; return [rows, bytes of a row]. Raises CheckpointError."""
        if self._first == 0:
            _announce(self._stored)
        content = self.buffer[: self.num_bytes]
        fill_from(self._stored, self._first * self._row_bytes, content)
        return content.view(self._count, self._row_bytes)


def _announce(stored: StoredTensor) -> None:
    """Let the operating system read the whole tensor from the disk, while its first slices are packed."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError), stored.file.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), stored.start, stored.num_bytes, os.POSIX_FADV_WILLNEED)
