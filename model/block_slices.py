"""Read matrices of GGUF files slice by slice, so that packing one needs a few megabytes beside the packed weights."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO

import torch
from torch import Tensor

from model.checkpoint.errors import CheckpointError
from model.checkpoint.stored_tensor import StoredTensor
from model.ops.huge_pages import empty
from model.ops.weights import SLICE_ROWS
from model.stored_weights import fill_from

SLICE_BYTES = 4 << 20


class SliceReader:
    """Reader of slices; a thread reads the next one while the caller packs one. Serves one caller at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read")
        # The same pages for every tensor: touching new ones would take longer than reading.
        self._buffers = [empty(SLICE_BYTES, torch.uint8) for _ in range(2)]

    def read(self, stored: StoredTensor) -> Iterator[Tensor]:
        """Yield the rows of a matrix in order: [rows, bytes of a row], a multiple of SLICE_ROWS but in the last slice.

        A slice is valid until the next one is asked for. Raises CheckpointError.
        """
        num_rows, row_bytes = stored.shape[0], stored.num_bytes // stored.shape[0]
        step = max(SLICE_ROWS, SLICE_BYTES // row_bytes // SLICE_ROWS * SLICE_ROWS)
        try:
            with stored.file.open("rb", buffering=0) as file:
                _announce(file, stored)
                ahead = self._thread.submit(self._fill, file, stored, 0, min(step, num_rows))
                for first in range(step, num_rows + step, step):
                    rows = ahead.result()
                    if first < num_rows:
                        ahead = self._thread.submit(self._fill, file, stored, first, min(step, num_rows - first))
                    yield rows
        except OSError as error:
            raise CheckpointError(f"{stored.file}: tensor {stored.name} cannot be read: {error.strerror}") from None

    def _fill(self, file: FileIO, stored: StoredTensor, first: int, count: int) -> Tensor:
        row_bytes = stored.num_bytes // stored.shape[0]
        if self._buffers[0].nbytes < count * row_bytes:
            self._buffers[0] = empty(count * row_bytes, torch.uint8)
        content = self._buffers[0][: count * row_bytes]
        self._buffers.reverse()
        file.seek(stored.start + first * row_bytes)
        if not fill_from(file, content.numpy().data):
            raise CheckpointError(f"{stored.file} ends within tensor {stored.name}")
        return content.view(count, row_bytes)


def _announce(file: FileIO, stored: StoredTensor) -> None:
    """Let the operating system read the whole tensor from the disk, while its first slices are packed."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), stored.start, stored.num_bytes, os.POSIX_FADV_WILLNEED)
