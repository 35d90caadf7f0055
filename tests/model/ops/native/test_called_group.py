"""Calls of the library gather over any group."""

import pytest
import torch
from torch import Tensor

from model.cut import PANEL, Cut
from model.group import Group, GroupEndedError
from model.ops.native.group import CalledGroup
from model.ops.native.ops import check
from tests.support.native_cases import LIBRARY

WIDTH, NUM_ROWS = 200, 300


class _OtherRanks:
    """Group whose other ranks have the rest of `whole`. It checks what it gets."""

    def __init__(self, whole: Tensor, cut: Cut) -> None:
        self.cut = cut
        self._whole = whole.view(torch.uint8)

    def gather(self, part: Tensor, width: int, unit: int) -> Tensor:
        columns = self.cut.part(width, unit)
        assert torch.equal(part, self._whole[:, columns.start : columns.stop])
        return self._whole


class _Lost:
    """Group that has lost a rank."""

    cut = Cut(0, 2)

    def gather(self, part: Tensor, width: int, unit: int) -> Tensor:
        raise GroupEndedError("rank 1 is gone")


def _gather_in_library(group: Group, whole: Tensor) -> Tensor:
    """Let the library gather the rank's columns of `whole`."""
    called, columns, item = CalledGroup(LIBRARY, group), group.cut.part(WIDTH, PANEL), whole.element_size()
    part, gathered = whole[:, columns.start : columns.stop].contiguous(), torch.zeros_like(whole)
    sizes = WIDTH * item, columns.start * item, len(columns) * item, PANEL * item
    addresses = part.data_ptr(), gathered.data_ptr()
    check(LIBRARY.call.smoe_group_gather(called.handle, *addresses, len(whole), *sizes), called)
    return gathered


@pytest.mark.parametrize("cut", [Cut(0, 2), Cut(1, 3), Cut(2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_library_gets_the_columns_of_other_ranks(cut: Cut, dtype: torch.dtype) -> None:
    whole = torch.randn(NUM_ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(_gather_in_library(_OtherRanks(whole, cut), whole), whole)


def test_the_reason_of_a_lost_rank_comes_out_of_the_library() -> None:
    with pytest.raises(GroupEndedError, match="rank 1 is gone"):
        _gather_in_library(_Lost(), torch.zeros(3, WIDTH))


def test_an_error_is_told_once() -> None:
    called = CalledGroup(LIBRARY, _Lost())
    arguments = torch.zeros(1, 4).data_ptr(), torch.zeros(1, 8).data_ptr(), 1, 8, 0, 4, 4
    assert LIBRARY.call.smoe_group_gather(called.handle, *arguments) == 2
    assert str(called.failure()) == "rank 1 is gone"
    assert not str(called.failure())
