"""A group of ranks on one host, which exchange rows through shared memory (model/native/group/group.h)."""

import ctypes
import mmap
import weakref
from ctypes import c_char, c_void_p

import torch
from torch import Tensor

from model.cut import Cut
from model.group import Group, GroupEndedError
from model.ops.native.library import NativeLibrary


def shared_bytes(library: NativeLibrary, size: int, buffer_bytes: int) -> int:
    """Return the bytes of shared memory of a group of `size` ranks."""
    return int(library.call.smoe_group_bytes(size, buffer_bytes))


class SharedGroup:
    """Implementation of model.group.Group. Also used inside the calls of the library, by its handle."""

    def __init__(self, library: NativeLibrary, cut: Cut, fd: int, buffer_bytes: int) -> None:
        """Map the memory behind `fd`, of shared_bytes(), zeros at first. No gathered row is larger than
        `buffer_bytes`. The caller keeps the descriptor."""
        self.cut = cut
        self._call = library.call
        size = shared_bytes(library, cut.size, buffer_bytes)
        self._memory = (c_char * size).from_buffer(mmap.mmap(fd, size))
        self._buffer_bytes = buffer_bytes
        self._buffers = size - 2 * buffer_bytes  # offset of the first one
        address = ctypes.addressof(self._memory)
        self.handle = c_void_p(library.call.smoe_group_create(address, cut.rank, cut.size, buffer_bytes))
        weakref.finalize(self, library.call.smoe_group_destroy, self.handle)

    def gather(self, part: Tensor, width: int, unit: int) -> Tensor:
        columns, item = self.cut.part(width, unit), part.element_size()
        whole = torch.empty(len(part), width, dtype=part.dtype)
        sizes = len(part), width * item, columns.start * item, len(columns) * item
        part = part.contiguous()
        if self._call.smoe_group_gather(self.handle, part.data_ptr(), whole.data_ptr(), *sizes):
            raise GroupEndedError
        return whole  # [T, width]

    def fill(self, whole: Tensor) -> None:
        """Join rows, as gather() does, with all columns from this rank. Raises GroupEndedError."""
        size = whole.element_size() * whole.shape[1]
        unused = torch.empty_like(whole)
        if self._call.smoe_group_gather(self.handle, whole.data_ptr(), unused.data_ptr(), len(whole), size, 0, size):
            raise GroupEndedError

    def buffer(self, arrival: int, num_bytes: int) -> Tensor:
        """Return the beginning of the buffer that all ranks fill after arrival number `arrival`: bytes, not a copy."""
        offset = self._buffers + arrival % 2 * self._buffer_bytes
        return torch.frombuffer(self._memory, dtype=torch.uint8, count=num_bytes, offset=offset)

    def end(self) -> None:
        """Let all gathers of all ranks raise GroupEndedError from now on. Any thread may call it."""
        self._call.smoe_group_end(self.handle)

    def num_arrivals(self, rank: int) -> int:
        """Return how many gathers a rank has reached, in pieces of the buffer's size, modulo 2^32."""
        return int(self._call.smoe_group_arrivals(self.handle, rank))


def gathers_in_library(group: Group) -> bool:
    """Return whether functions of the library can gather over this group: a single rank, or memory that all share."""
    return group.cut.size == 1 or isinstance(group, SharedGroup)


def handle_of(group: Group) -> c_void_p | None:
    """Return the group as an argument of the library's functions: None for a single rank."""
    if group.cut.size == 1:
        return None
    assert isinstance(group, SharedGroup), "the library gathers through shared memory"
    return group.handle
