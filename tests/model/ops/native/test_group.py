"""Gathers of ranks over shared memory."""

import asyncio
import threading

import pytest
import torch
from torch import Tensor

from model.group import GroupEndedError
from model.ops.native.group import SharedGroup
from tests.support.conditions import until
from tests.support.hosts.ranks import on_each_rank, shared_groups


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_rank_gets_the_columns_of_all(size: int, dtype: torch.dtype) -> None:
    """200 columns in units of 32 are uneven parts; the rows take one buffer, several, and a part of one."""
    wholes = [torch.randn(rows, 200, generator=torch.Generator().manual_seed(rows)).to(dtype) for rows in (1, 7, 33, 2)]

    def gather_all(group: SharedGroup) -> list[Tensor]:
        columns = group.cut.part(200, 32)
        return [group.gather(whole[:, columns.start : columns.stop], 200, 32) for whole in wholes * 50]

    with shared_groups(size, buffer_bytes=4096) as groups:
        for gathered in on_each_rank(groups, gather_all):
            assert all(torch.equal(ours, whole) for ours, whole in zip(gathered, wholes * 50, strict=True))


def test_the_end_of_a_group_reaches_a_rank_that_waits_and_those_that_come_later() -> None:
    errors = []

    def gather(group: SharedGroup) -> None:
        try:
            group.gather(torch.zeros(1, 32), 64, 32)
        except GroupEndedError as error:
            errors.append(error)

    with shared_groups(2) as groups:
        waiting = threading.Thread(target=gather, args=(groups[0],))
        waiting.start()
        asyncio.run(until(lambda: groups[1].num_arrivals(0) == 1))
        groups[1].end()
        waiting.join(60)
        gather(groups[1])
        assert len(errors) == 2 and not waiting.is_alive()
