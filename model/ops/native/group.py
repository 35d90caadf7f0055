"""Groups of ranks inside calls of the library: over memory that ranks of one host share (model/native/group), or over
any other group, whose gathers the library calls."""

import ctypes
import mmap
import weakref
from ctypes import c_char, c_void_p
from typing import Protocol

import torch
from torch import Tensor

from model.cut import Cut
from model.group import Group, GroupEndedError
from model.ops.native.library import GatherFunction, NativeLibrary

ENDED = 2  # result of a library function after the end of its group


class LibraryGroup(Protocol):
    """A group for calls of the library."""

    handle: c_void_p

    def failure(self) -> BaseException:
        """Return why the last gather failed."""


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
        address = ctypes.addressof(self._memory)
        self.handle = c_void_p(library.call.smoe_group_create(address, cut.rank, cut.size, buffer_bytes))
        weakref.finalize(self, library.call.smoe_group_destroy, self.handle)

    def gather(self, part: Tensor, width: int, unit: int) -> Tensor:
        columns, item = self.cut.part(width, unit), part.element_size()
        whole = torch.empty(len(part), width, dtype=part.dtype)
        sizes = len(part), width * item, columns.start * item, len(columns) * item, unit * item
        part = part.contiguous()
        if self._call.smoe_group_gather(self.handle, part.data_ptr(), whole.data_ptr(), *sizes):
            raise GroupEndedError
        return whole  # [T, width]

    def end(self) -> None:
        """Let all gathers of all ranks raise GroupEndedError from now on. Any thread may call it."""
        self._call.smoe_group_end(self.handle)

    def num_arrivals(self, rank: int) -> int:
        """Return how many gathers a rank has reached, in pieces of the buffer's size, modulo 2^32."""
        return int(self._call.smoe_group_arrivals(self.handle, rank))

    def failure(self) -> BaseException:
        return GroupEndedError()


class CalledGroup:
    """Any group, for calls of the library: they gather through `group.gather` in the thread that made the call."""

    def __init__(self, library: NativeLibrary, group: Group) -> None:
        self.group = group
        self._error: BaseException | None = None
        self._function = GatherFunction(self._gather)
        self.handle = c_void_p(library.call.smoe_group_of_calls(self._function, None))
        weakref.finalize(self, library.call.smoe_group_destroy, self.handle)

    def failure(self) -> BaseException:
        error, self._error = self._error, None
        return error or GroupEndedError()

    def _gather(
        self, context: None, part: int, whole: int, num_rows: int, whole_bytes: int, first: int, own: int, unit: int
    ) -> int:
        """Gather rows of bytes. An exception must not pass through the library: failure() returns it."""
        try:
            rows = self.group.gather(_rows_at(part, num_rows, own), whole_bytes, unit)
            _rows_at(whole, num_rows, whole_bytes).copy_(rows)
        except BaseException as error:  # noqa: BLE001 (it must not pass through C++)
            self._error = error
            return ENDED
        return 0


def _rows_at(address: int, num_rows: int, num_bytes: int) -> Tensor:
    """Return memory of the library as a tensor [num_rows, num_bytes]; not a copy."""
    memory = (c_char * (num_rows * num_bytes)).from_address(address)
    return torch.frombuffer(memory, dtype=torch.uint8).view(num_rows, num_bytes)
