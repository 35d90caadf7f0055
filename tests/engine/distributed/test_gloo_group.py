"""Gathers of ranks over the network."""

import pytest
import torch
from torch import Tensor

from engine.distributed.gloo_group import GlooGroup
from model.group import GroupEndedError
from tests.support.ranks import gloo_groups, on_each_rank


@pytest.mark.parametrize("size", [2, 3])
def test_each_rank_gets_the_columns_of_all(size: int) -> None:
    """200 columns in units of 32 are uneven parts; a gather without rows sends nothing."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, torch.float32), (0, torch.float32), (7, torch.bfloat16), (500, torch.float32)]
    wholes = [torch.randn(rows, 200, generator=generator).to(dtype) for rows, dtype in shapes]

    def gather_all(group: GlooGroup) -> list[Tensor]:
        columns = group.cut.part(200, 32)
        return [group.gather(whole[:, columns.start : columns.stop], 200, 32) for whole in wholes * 5]

    with gloo_groups(size) as groups:
        for gathered in on_each_rank(groups, gather_all):
            assert all(torch.equal(ours, whole) for ours, whole in zip(gathered, wholes * 5, strict=True))


def test_a_rank_that_does_not_answer_is_named() -> None:
    with gloo_groups(2) as groups:
        groups[0].timeout_s = 0.2
        with pytest.raises(GroupEndedError, match=r"^rank 1 did not answer for 0.2 s$"):
            groups[0].gather(torch.zeros(1, 32), 64, 32)
