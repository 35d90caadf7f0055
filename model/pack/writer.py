"""Write a pack: a folder beside its final place, which gets its name when everything is on the disk."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from model.checkpoint.errors import CheckpointError
from model.checkpoint.pack.header import PAGE_BYTES, WEIGHTS_NAME, PackedTensor, PackHeader, header_space, write_header
from model.config import ModelConfig

WRITE_BYTES = 16 << 20
PARTIAL = ".partial"  # behind the name of the folder while it is written


@contextmanager
def new_pack(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Give a folder for the files of a pack and its open weight file; after the block the folder is named `target`.

    An exception in the block removes the folder. What a killed process left is removed by the next one. Raises
    CheckpointError if `target` exists, another process writes it, or the disk is full.
    """
    partial = target.with_name(target.name + PARTIAL)
    try:
        if target.exists():
            raise CheckpointError(f"{target} exists; choose another name, or move it away")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        with (partial / WEIGHTS_NAME).open("ab") as lock, (partial / WEIGHTS_NAME).open("r+b") as stream:
            _lock(lock, partial)
            _remove_rest(partial)
            try:
                stream.truncate(0)
                yield partial, stream
                partial.rename(target)  # while it is locked: whoever opened the file before finds no folder then
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            _sync_folder(target.parent)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror}") from None


class TensorWriter:
    """Writes tensors to a pack's file, one behind another, with their checksums."""

    def __init__(self, stream: BinaryIO, config: ModelConfig) -> None:
        self._stream = stream
        self._stream.seek(header_space(config))
        self._position = header_space(config)
        self.tensors: dict[str, PackedTensor] = {}

    def write(self, name: str, parts: Sequence[Tensor]) -> None:
        """Write the bytes of `parts` as one tensor; of several parts they are flat. Raises OSError."""
        digest, num_bytes = hashlib.sha256(), 0
        for part in parts:
            content = part.contiguous().flatten().view(torch.uint8).numpy().data
            for first in range(0, len(content), WRITE_BYTES):
                piece = content[first : first + WRITE_BYTES]
                digest.update(piece)
                self._stream.write(piece)
            num_bytes += len(content)
        dtype = str(parts[0].dtype).removeprefix("torch.")
        shape = tuple(parts[0].shape) if len(parts) == 1 else (num_bytes,)
        self.tensors[name] = PackedTensor(name, self._position, num_bytes, dtype, shape, digest.hexdigest())
        padding = -num_bytes % PAGE_BYTES
        self._stream.write(bytes(padding))
        self._position += num_bytes + padding

    @property
    def file_bytes(self) -> int:
        """Bytes of the file so far."""
        return self._position


def finish(stream: BinaryIO, header: PackHeader, folder: Path) -> None:
    """Write the header, bring everything to the disk, and only then the prefix that makes the file a pack.

    Drops the file from the page cache: pages that were written are small, those that are read again are large. Raises
    OSError.
    """
    prefix = write_header(stream, header)
    _sync(stream)
    for file in folder.iterdir():
        if file.name != WEIGHTS_NAME and file.is_file():
            with file.open("rb") as other:
                os.fsync(other.fileno())
    stream.seek(0)
    stream.write(prefix)
    _sync(stream)
    _sync_folder(folder)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _lock(stream: BinaryIO, partial: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CheckpointError(f"another process is writing {partial}") from None


def _remove_rest(partial: Path) -> None:
    """Remove what a killed process left, except the locked file."""
    for entry in partial.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != WEIGHTS_NAME:
            entry.unlink()


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
