"""Experts of a network that is larger than memory: some lie in slots, the others are read when a step needs them.

The library reads and computes; this object holds its memory and its handle. model/native/store/expert_store.h describes
which experts stay.
"""

import ctypes
import os
import weakref
from collections.abc import Callable, Sequence
from ctypes import CFUNCTYPE, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.ops.huge_pages import HUGE_PAGE_BYTES, empty
from model.ops.native.library import NativeLibrary, NativeUnavailableError
from model.ops.native.structs import StoreCounts, StoreLayout

READ_FAILED = 3  # returned by functions of the library
PAGE_BYTES = 4096  # positions and sizes of reads are multiples
NANOSECONDS = 1e9  # in a second
NUM_READERS = 8  # a disk needs several requests of a megabyte at once to reach its speed

# context, memory, bytes, position -> bytes that were read, 0 at the end, or a negative number of errno
ReadFunction = CFUNCTYPE(c_int64, c_void_p, c_void_p, c_int64, c_int64)
Read = Callable[[int, int, int], int]  # the same, without the context


class ExpertReadError(Exception):
    """An expert could not be read, twice. The message names file, layer and expert."""


@dataclass(frozen=True)
class StoredExperts:
    """Places of all experts in a file: multiples of PAGE_BYTES. Behind an expert the file goes on to a whole page."""

    positions: Sequence[Sequence[int]]  # [layers][experts]
    num_bytes: Sequence[int]  # [layers] of each of a layer's experts
    mapped: Tensor  # the file's bytes, mapped; the weights have addresses in it, at which nothing is read

    @property
    def slot_bytes(self) -> int:
        return -(-max(self.num_bytes) // PAGE_BYTES) * PAGE_BYTES


class ExpertStore:
    """Slots in memory, and the threads that read experts into them. They end with this object."""

    def __init__(
        self,
        library: NativeLibrary,
        experts: StoredExperts,
        num_slots: int,
        file: str,
        source: int | Read,
        *,
        in_page_cache: bool = False,
    ) -> None:
        """`source`: descriptor of the open file, which this object closes at its end, or a function that reads in its
        place. `file`: its name, for errors. `in_page_cache`: slots are where the file is mapped, and `source` is a
        descriptor.

        Raises MemoryError, and NativeUnavailableError if the threads cannot be started.
        """
        self._call, self._experts, self._file = library.call, experts, file
        self.num_slots = num_slots
        num_bytes = 0 if in_page_cache else max(HUGE_PAGE_BYTES, num_slots * experts.slot_bytes)  # so in whole pages
        memory = empty(num_bytes, torch.uint8)
        layers, each = len(experts.positions), len(experts.positions[0])
        positions = (c_int64 * (layers * each))(*(place for layer in experts.positions for place in layer))
        layout = StoreLayout(layers, each, num_slots, experts.slot_bytes, NUM_READERS)
        layout.positions = ctypes.addressof(positions)
        expert_bytes = (c_int64 * layers)(*experts.num_bytes)
        layout.expert_bytes = ctypes.addressof(expert_bytes)
        layout.memory, layout.mapped = memory.data_ptr() if num_bytes else None, experts.mapped.data_ptr()
        if isinstance(source, int):
            layout.context = source
            function: Any = library.call.smoe_populate if in_page_cache else library.call.smoe_read_file
        else:
            function = _read_function(source)
        layout.read = ctypes.cast(function, c_void_p).value
        layout.drop = ctypes.cast(library.call.smoe_unpopulate, c_void_p).value
        self.handle = self._call.smoe_store_create(layout)
        if not self.handle:
            raise NativeUnavailableError(f"cannot start {NUM_READERS} threads that read experts")
        descriptor = source if isinstance(source, int) else None
        weakref.finalize(self, _destroy, self._call, self.handle, descriptor, memory, experts.mapped, function)

    @property
    def num_bytes(self) -> int:
        """Bytes of the slots, of this process or in the page cache."""
        return self.num_slots * self._experts.slot_bytes

    def counts(self) -> StoreCounts:
        """Return the counts since the start."""
        counts = StoreCounts()
        self._call.smoe_store_get_counts(self.handle, counts)
        return counts

    @property
    def waited_s(self) -> float:
        """Seconds since the start in which steps waited for reads."""
        return float(self.counts().waited_ns) / NANOSECONDS

    def failure(self) -> ExpertReadError:
        """Return why the last step failed."""
        fault = (c_int64 * 4)()
        self._call.smoe_store_get_fault(self.handle, fault)
        layer, expert, position, error = fault
        reason = os.strerror(error) if error else "the file ends before it"
        return ExpertReadError(
            f"{self._file}: expert {expert} of layer {layer} cannot be read at byte {position}, twice: {reason}"
        )


def _read_function(read: Read) -> Any:
    return ReadFunction(lambda context, memory, num_bytes, position: read(memory, num_bytes, position))


def _destroy(call: ctypes.CDLL, handle: int, descriptor: int | None, *used: object) -> None:
    """End the threads, then let go of what they use."""
    call.smoe_store_destroy(handle)
    if descriptor is not None:
        os.close(descriptor)
