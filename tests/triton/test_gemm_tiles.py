"""Tile sizes by number of rows and dtype."""

import pytest
import torch

from model.ops.triton.gemm_tiles import BY_ROWS, BY_ROWS_PAIRED, SOME, WIDE, choose_tiling


@pytest.mark.parametrize("paired", [False, True])
def test_tiles_grow_with_the_rows_unless_deterministic(paired: bool) -> None:
    half = torch.bfloat16
    few, some, many = (tiling for _, tiling in (BY_ROWS_PAIRED if paired else BY_ROWS))
    chosen = {rows: choose_tiling(rows, half, False, paired) for rows in (0, 16, 17, 64, 65, 4096)}
    assert chosen == {0: few, 16: few, 17: some, 64: some, 65: many, 4096: many}
    assert {choose_tiling(rows, half, True, paired) for rows in (0, 17, 4096)} == {SOME}
    assert {choose_tiling(rows, torch.float32, rows == 17, paired) for rows in (0, 17, 4096)} == {WIDE}


def test_gate_up_and_down_share_the_number_of_rows() -> None:
    for rows in (0, 16, 17, 64, 65, 4096):
        paired, single = (choose_tiling(rows, torch.bfloat16, False, paired) for paired in (True, False))
        assert paired.rows == single.rows
