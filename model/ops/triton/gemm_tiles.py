"""Parts of all matrix kernels: tile sizes, and the product of one tile.

The weights are the left operand, so their tile is tall even for a few rows; 8-bit weights are widened in registers.
Sums are float32, over k in ascending order.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

# mypy: disable-error-code="untyped-decorator"


@dataclass(frozen=True)
class Tiling:
    """Tile sizes: a program computes `rows` x `outputs` numbers, `inputs` of the common dimension at a time."""

    rows: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int


FEW = Tiling(rows=16, outputs=64, inputs=128, num_warps=4, num_stages=4)
SOME = Tiling(rows=64, outputs=64, inputs=64, num_warps=4, num_stages=4)
MANY = Tiling(rows=128, outputs=128, inputs=64, num_warps=8, num_stages=3)
FEW_PAIRED = Tiling(rows=16, outputs=64, inputs=64, num_warps=4, num_stages=5)  # two weight tiles at once
MANY_PAIRED = Tiling(rows=128, outputs=64, inputs=64, num_warps=8, num_stages=3)
WIDE = Tiling(rows=16, outputs=32, inputs=32, num_warps=4, num_stages=2)  # float32 has no tensor cores: small tiles

# The first entry whose bound is at least the number of rows. Derived from shared memory sizes, not from measurements.
BY_ROWS = ((16, FEW), (64, SOME), (None, MANY))
BY_ROWS_PAIRED = ((16, FEW_PAIRED), (64, SOME), (None, MANY_PAIRED))


def choose_tiling(num_rows: int, dtype: torch.dtype, deterministic: bool, paired: bool = False) -> Tiling:
    """Choose tile sizes for `num_rows` rows per matrix (for experts: on average).

    `deterministic`: the same sizes for every batch, so that a row's bits do not depend on the batch.
    """
    if dtype == torch.float32:
        return WIDE
    if deterministic:
        return SOME
    table = BY_ROWS_PAIRED if paired else BY_ROWS
    return next(tiling for bound, tiling in table if bound is None or num_rows <= bound)


@triton.jit
def load_weights(pointers: tl.tensor, mask: tl.tensor, FORMAT: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    """Load a tile of weights as `dtype`, without their scale (model/ops/triton/packed_weights.py)."""
    raw = tl.load(pointers, mask=mask, other=0)
    if FORMAT == "fp8":
        bits = raw.to(tl.int16)
        raw = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
    return raw.to(dtype)


@triton.jit
def multiply_tile(
    x_rows: tl.tensor,
    row_mask: tl.tensor,
    w_rows: tl.tensor,
    w_mask: tl.tensor,
    dim: tl.tensor,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    FORMAT: tl.constexpr,
) -> tl.tensor:
    """Multiply OUTPUTS rows of w by ROWS rows of x, `dim` long, given by pointers: w @ x.T, [OUTPUTS, ROWS] float32."""
    inputs = tl.arange(0, INPUTS)
    total = tl.zeros((OUTPUTS, ROWS), dtype=tl.float32)
    for start in range(0, dim, INPUTS):
        k = start + inputs
        inside = k < dim
        x = tl.load(x_rows[None, :] + k[:, None], mask=row_mask[None, :] & inside[:, None], other=0.0)
        w = load_weights(w_rows[:, None] + k[None, :], w_mask[:, None] & inside[None, :], FORMAT, x.dtype)
        total = tl.dot(w, x, total, input_precision="ieee")
    return total
