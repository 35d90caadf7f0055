"""Groups of ranks inside calls of the library (model/native/group): over memory that ranks of one host share, or over
sockets between hosts."""

import contextlib
import ctypes
import mmap
import socket
import weakref
from collections.abc import Mapping
from ctypes import c_char, c_int, c_void_p
from typing import Protocol

import torch
from torch import Tensor

from model.cut import Cut
from model.group import GroupEndedError
from model.ops.native.library import NativeLibrary
from model.ops.native.structs import SocketArguments

ENDED = 2  # result of a library function after the end of its group


class LibraryGroup(Protocol):
    """A group for calls of the library."""

    handle: c_void_p

    def failure(self) -> GroupEndedError:
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
        self._library = library
        self._call = library.call
        size = shared_bytes(library, cut.size, buffer_bytes)
        self._memory = (c_char * size).from_buffer(mmap.mmap(fd, size))
        address = ctypes.addressof(self._memory)
        self.handle = c_void_p(library.call.smoe_group_create(address, cut.rank, cut.size, buffer_bytes))
        weakref.finalize(self, library.call.smoe_group_destroy, self.handle)

    def gather(self, part: Tensor, width: int, unit: int) -> Tensor:
        return _gather(self._library, self, self.cut, part, width, unit)  # [T, width]

    def end(self) -> None:
        """Let all gathers of all ranks raise GroupEndedError from now on. Any thread may call it."""
        self._call.smoe_group_end(self.handle)

    def num_arrivals(self, rank: int) -> int:
        """Return how many gathers a rank has reached, in pieces of the buffer's size, modulo 2^32."""
        return int(self._call.smoe_group_arrivals(self.handle, rank))

    def failure(self) -> GroupEndedError:
        return GroupEndedError()


class SocketGroup:
    """Implementation of model.group.Group for ranks that share no memory. Each sends its part to every other one. Also
    used inside the calls of the library, by its handle. Not thread-safe: one gather at a time."""

    def __init__(
        self, library: NativeLibrary, cut: Cut, connections: Mapping[int, socket.socket], timeout_s: float
    ) -> None:
        """`connections`: to each other rank, and used for nothing else from now on; `timeout_s`: limit of each wait for
        another rank."""
        self.cut = cut
        self._library = library
        self._connections = dict(connections)
        self._descriptors = (c_int * cut.size)(*(self._descriptor(rank) for rank in range(cut.size)))
        self._arguments = SocketArguments(self._descriptors, cut.rank, cut.size)
        self.timeout_s = timeout_s
        self.handle = c_void_p(library.call.smoe_group_of_sockets(self._arguments))
        if not self.handle:
            raise MemoryError
        weakref.finalize(self, library.call.smoe_group_destroy, self.handle)

    @property
    def timeout_s(self) -> float:
        """Limit of each wait for another rank."""
        return float(self._arguments.timeout_ms) / 1000

    @timeout_s.setter
    def timeout_s(self, seconds: float) -> None:
        self._arguments.timeout_ms = round(seconds * 1000)

    def gather(self, part: Tensor, width: int, unit: int) -> Tensor:
        return _gather(self._library, self, self.cut, part, width, unit)  # [T, width]

    def end(self) -> None:
        """Let all gathers of all ranks raise GroupEndedError from now on. Any thread may call it."""
        for connection in self._connections.values():
            with contextlib.suppress(OSError):  # not connected any more
                connection.shutdown(socket.SHUT_RDWR)

    def failure(self) -> GroupEndedError:
        rank = self._arguments.lost_rank
        if self._arguments.is_late:
            return GroupEndedError(f"rank {rank} did not answer for {self.timeout_s:g} s")
        return GroupEndedError(f"the connection to rank {rank} broke")

    def _descriptor(self, rank: int) -> int:
        return -1 if rank == self.cut.rank else self._connections[rank].fileno()


def _gather(library: NativeLibrary, group: LibraryGroup, cut: Cut, part: Tensor, width: int, unit: int) -> Tensor:
    """Gather as model.group.Group describes."""
    columns, item = cut.part(width, unit), part.element_size()
    whole = torch.empty(len(part), width, dtype=part.dtype)
    sizes = len(part), width * item, columns.start * item, len(columns) * item, unit * item
    part = part.contiguous()
    code = library.call.smoe_group_gather(group.handle, part.data_ptr(), whole.data_ptr(), *sizes)
    if code == ENDED:
        raise group.failure()
    if code:
        raise MemoryError
    return whole
