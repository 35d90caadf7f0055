"""Gathers of hidden rows inside a call of the library, for ranks that do not share memory.

The library gathers hidden rows in the middle of an FFN (model/native/moe/experts.cpp), and only through memory. Here it
shares memory with a thread of its own process: the thread takes the rank's columns from there, gathers them with those
of the other ranks, and puts the whole rows into their place.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_void_p
from threading import Event

import torch

from model.cut import MIN_BUFFER_BYTES, PANEL, Cut
from model.group import Group, GroupEndedError
from model.ops.native.group import SharedGroup, shared_bytes
from model.ops.native.library import NativeLibrary

LIBRARY_SIDE, THREAD_SIDE = 0, 1  # the ranks of the shared memory
FIRST_WAIT_S, LONGEST_WAIT_S = 20e-6, 1e-3  # between two looks at the library's side
GROWTH = 17 / 16  # of these waits: the thread is late by about a sixteenth of the time that the rank's part takes


class HiddenExchange:
    """The library's view of a group that is not in shared memory. One call at a time."""

    def __init__(self, library: NativeLibrary, group: Group, row_bytes: int) -> None:
        """`row_bytes`: of the widest row."""
        self.group = group
        self._buffer_bytes = max(MIN_BUFFER_BYTES, row_bytes)
        self._thread = ThreadPoolExecutor(1, "hidden rows")
        self._has_failed = Event()  # the call of the library
        fd = os.memfd_create("smoe-hidden")
        try:
            os.truncate(fd, shared_bytes(library, 2, self._buffer_bytes))
            self._sides = [SharedGroup(library, Cut(side, 2), fd, self._buffer_bytes) for side in range(2)]
        finally:
            os.close(fd)

    def run(self, call: Callable[[c_void_p], int], num_rows: int, width: int, dtype: torch.dtype) -> int:
        """Return the result of `call`, a function of the library that gets a group and gathers `num_rows` hidden rows
        of `width` numbers. Raises GroupEndedError."""
        exchanged = self._thread.submit(self._exchange, num_rows, width, dtype)
        result = call(self._sides[LIBRARY_SIDE].handle)
        if result:  # without its part nothing can be gathered any more
            self._has_failed.set()
        exchanged.result()
        return result

    def _exchange(self, num_rows: int, width: int, dtype: torch.dtype) -> None:
        step = self._buffer_bytes // (width * dtype.itemsize)  # as in model/native/group/group.cpp
        try:
            for first in range(0, num_rows, step):
                self._exchange_piece(min(step, num_rows - first), width, dtype)
        except BaseException:
            self._sides[THREAD_SIDE].end()  # the library waits for this side
            raise

    def _exchange_piece(self, num_rows: int, width: int, dtype: torch.dtype) -> None:
        side = self._sides[THREAD_SIDE]
        number = side.num_arrivals(THREAD_SIDE)
        self._await_library(number)
        columns = self.group.cut.part(width, PANEL)
        rows = side.buffer(number, num_rows * width * dtype.itemsize).view(dtype).view(num_rows, width)
        side.fill(self.group.gather(rows[:, columns.start : columns.stop], width, PANEL))

    def _await_library(self, number: int) -> None:
        """Wait until the library has filled its columns after arrival `number`. Raises GroupEndedError."""
        wait_s = FIRST_WAIT_S
        while self._sides[THREAD_SIDE].num_arrivals(LIBRARY_SIDE) == number:
            if self._has_failed.wait(wait_s):
                raise GroupEndedError("this rank could not compute its part")
            wait_s = min(LONGEST_WAIT_S, wait_s * GROWTH)
