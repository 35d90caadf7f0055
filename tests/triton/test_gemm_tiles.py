"""Tile sizes by number of rows, dtype and weight format."""

import pytest
import torch

from model.ops.triton.gemm_tiles import WIDE, choose_splits, choose_tiling
from model.ops.triton.packed_weights import BLOCK_INPUTS, WeightFormat

FORMATS: list[WeightFormat] = ["plain", "int8", "fp8"]


@pytest.mark.parametrize("weight_format", FORMATS)
def test_tiles_grow_with_the_rows_unless_deterministic(weight_format: WeightFormat) -> None:
    counts = (0, 1, 16, 17, 32, 33, 64, 65, 4096)
    tiles = [choose_tiling(count, torch.bfloat16, weight_format, False).rows for count in counts]
    assert tiles == [16, 16, 16, 32, 32, 64, 64, 128, 128]
    assert {choose_tiling(count, torch.bfloat16, weight_format, True).rows for count in counts} == {64}
    assert {choose_tiling(count, torch.float32, weight_format, False).rows for count in counts} == {WIDE.rows}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight_format", ["int8", "fp8"])
def test_8_bit_weights_are_read_in_whole_blocks(dtype: torch.dtype, weight_format: WeightFormat) -> None:
    for count in (1, 30, 60, 500):
        assert choose_tiling(count, dtype, weight_format, False).inputs == BLOCK_INPUTS


def test_few_programs_share_the_common_dimension_unless_deterministic() -> None:
    programs = (1, 64, 96, 128, 132, 133, 264, 5000)
    assert [choose_splits(count, False) for count in programs] == [4, 4, 2, 2, 2, 1, 1, 1]
    assert {choose_splits(count, True) for count in programs} == {1}
