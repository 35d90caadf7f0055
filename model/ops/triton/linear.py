"""Linear layer: y = x w.T, with plain or 8-bit weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.triton.gemm_tiles import Tiling, multiply_tile
from model.ops.triton.launch import Launch, blocks, wait_for_inputs
from model.ops.triton.packed_weights import TritonMatrix

# mypy: disable-error-code="untyped-decorator"


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def linear_kernel(
    x: tl.tensor,
    w: tl.tensor,
    scales: tl.tensor,
    y: tl.tensor,
    num_rows: tl.tensor,
    num_outputs: tl.tensor,
    dim: tl.tensor,
    num_splits: tl.tensor,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
    FORMAT: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Compute one tile of y [splits, T, O] float32; a split sums a part of the products.

    Programs that share weights run one after another, so that weights are read once.
    """
    wait_for_inputs(EARLY)
    split = tl.program_id(1)
    row_tiles = tl.cdiv(num_rows, ROWS)
    rows = (tl.program_id(0) % row_tiles) * ROWS + tl.arange(0, ROWS)
    outputs = (tl.program_id(0) // row_tiles) * OUTPUTS + tl.arange(0, OUTPUTS)
    row_mask, output_mask = rows < num_rows, outputs < num_outputs
    x_rows = x + tl.where(row_mask, rows, 0).to(tl.int64) * dim
    w_rows = tl.where(output_mask, outputs, 0).to(tl.int64)
    total = multiply_tile(x_rows, w, w_rows, dim, split, num_splits, ROWS, OUTPUTS, INPUTS, EVEN, FORMAT)
    if FORMAT != "plain":
        total = total * tl.load(scales + outputs, mask=output_mask, other=0.0)[:, None]
    target = y + (split.to(tl.int64) * num_rows + rows[None, :]) * num_outputs + outputs[:, None]
    tl.store(target, total, mask=output_mask[:, None] & row_mask[None, :])


def linear(launch: Launch, x: Tensor, weight: TritonMatrix, tiling: Tiling, num_splits: int = 1) -> Tensor:
    """Multiply [T, D] -> parts [splits, T, O] float32, whose sum is the product."""
    num_rows, num_outputs, dim = len(x), len(weight.values), weight.num_inputs
    parts = x.new_empty(num_splits, num_rows, num_outputs, dtype=torch.float32)
    launch(
        linear_kernel,
        (num_tiles(x, weight, tiling), num_splits),
        *(x.contiguous(), weight.values, weight.scale, parts, num_rows, num_outputs, dim, num_splits),
        ROWS=tiling.rows,
        OUTPUTS=tiling.outputs,
        INPUTS=tiling.inputs,
        EVEN=dim % tiling.inputs == 0,
        FORMAT=weight.format,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    return parts


def num_tiles(x: Tensor, weight: TritonMatrix, tiling: Tiling) -> int:
    """Return how many tiles the product has."""
    return blocks(len(x), tiling.rows) * blocks(len(weight.values), tiling.outputs)
