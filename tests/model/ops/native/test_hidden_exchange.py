"""A call of the library gathers hidden rows over any group."""

from ctypes import c_void_p

import pytest
import torch
from torch import Tensor

from model.cut import PANEL, Cut
from model.group import GroupEndedError
from model.ops.native.hidden_exchange import HiddenExchange
from tests.support.native_cases import LIBRARY

WIDTH = 200
NUM_ROWS = 3000  # more than fit the buffer of 1 MiB at once in float32


class _OtherRanks:
    """Group whose other ranks have the rest of `whole`. It checks what it gets."""

    def __init__(self, whole: Tensor, cut: Cut) -> None:
        self.cut = cut
        self._whole = whole
        self._num_gathered = 0

    def gather(self, part: Tensor, width: int, unit: int) -> Tensor:
        rows = self._whole[self._num_gathered :][: len(part)]
        self._num_gathered = (self._num_gathered + len(part)) % len(self._whole)
        columns = self.cut.part(width, unit)
        assert torch.equal(part, rows[:, columns.start : columns.stop])
        return rows


class _Lost:
    """Group that has lost a rank."""

    cut = Cut(0, 2)

    def gather(self, part: Tensor, width: int, unit: int) -> Tensor:
        raise GroupEndedError("rank 1 is gone")


def _gather_in_library(exchange: HiddenExchange, whole: Tensor) -> Tensor:
    """Let the library gather the rank's columns of `whole`, as it does in the middle of an FFN."""
    columns, item = exchange.group.cut.part(WIDTH, PANEL), whole.element_size()
    part, gathered = whole[:, columns.start : columns.stop].contiguous(), torch.zeros_like(whole)
    addresses, sizes = (part.data_ptr(), gathered.data_ptr()), (WIDTH * item, columns.start * item, len(columns) * item)

    def call(handle: c_void_p) -> int:
        return int(LIBRARY.call.smoe_group_gather(handle, *addresses, len(whole), *sizes))

    assert exchange.run(call, len(whole), WIDTH, whole.dtype) == 0
    return gathered


@pytest.mark.parametrize("cut", [Cut(0, 2), Cut(1, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_library_gets_the_columns_of_other_ranks(cut: Cut, dtype: torch.dtype) -> None:
    whole = torch.randn(NUM_ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    exchange = HiddenExchange(LIBRARY, _OtherRanks(whole, cut), WIDTH * 4)
    for _ in range(3):
        assert torch.equal(_gather_in_library(exchange, whole), whole)


def test_the_library_does_not_wait_for_a_rank_that_is_lost() -> None:
    with pytest.raises(GroupEndedError, match="rank 1 is gone"):
        _gather_in_library(HiddenExchange(LIBRARY, _Lost(), WIDTH * 4), torch.zeros(3, WIDTH))


def test_nobody_waits_for_a_call_that_failed_before_its_gather() -> None:
    exchange = HiddenExchange(LIBRARY, _Lost(), WIDTH * 4)
    with pytest.raises(GroupEndedError, match="could not compute its part"):
        exchange.run(lambda handle: 1, 3, WIDTH, torch.float32)
