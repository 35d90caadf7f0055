"""Parts of all matrix kernels: tile sizes, and the product of one tile.

The weights are the left operand, so their tile is tall even for a few rows; 8-bit weights are widened in registers.
Sums are float32, over k in ascending order, in 8 bits over the order of a block's bytes, which is ascending too.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from model.ops.triton.launch import HOPPER, power_of_two
from model.ops.triton.packed_weights import BLOCK_INPUTS, WeightFormat
from model.ops.triton.wide_weights import widen

# mypy: disable-error-code="untyped-decorator"


@dataclass(frozen=True)
class Tiling:
    """Tile sizes: a program computes `rows` x `outputs` numbers, `inputs` of the common dimension at a time."""

    rows: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int


TALLEST_ROWS = 128
WIDE = Tiling(rows=16, outputs=32, inputs=32, num_warps=4, num_stages=2)  # float32 has no tensor cores: small tiles

# By number of rows in a tile. Derived from shared memory and registers, not from measurements. 8-bit weights are read
# in blocks of 256 inputs (model/ops/triton/packed_weights.py).
PLAIN = {
    16: Tiling(rows=16, outputs=64, inputs=128, num_warps=4, num_stages=4),
    32: Tiling(rows=32, outputs=64, inputs=128, num_warps=4, num_stages=4),
    64: Tiling(rows=64, outputs=64, inputs=64, num_warps=4, num_stages=4),
    128: Tiling(rows=128, outputs=256, inputs=64, num_warps=8, num_stages=3),
}
WORDS = {
    16: Tiling(rows=16, outputs=64, inputs=256, num_warps=4, num_stages=4),
    32: Tiling(rows=32, outputs=64, inputs=256, num_warps=4, num_stages=3),
    64: Tiling(rows=64, outputs=64, inputs=256, num_warps=4, num_stages=3),
    128: Tiling(rows=128, outputs=128, inputs=256, num_warps=8, num_stages=2),
}
TALL_BEFORE_HOPPER = Tiling(rows=128, outputs=128, inputs=64, num_warps=8, num_stages=3)  # of PLAIN: 256 would spill
DETERMINISTIC_ROWS = 64
TARGET_PROGRAMS = 264  # two on each of the 132 multiprocessors of an H100
MOST_SPLITS = 4


def choose_tiling(
    num_rows: int, dtype: torch.dtype, weight_format: WeightFormat, deterministic: bool, arch: int = HOPPER
) -> Tiling:
    """Choose tile sizes for `num_rows` rows per matrix: the next power of two of 16 .. 64 rows, or 128.

    `deterministic`: the same sizes for every batch, so that a row's bits do not depend on the batch. `arch`: compute
    capability times 10.
    """
    if dtype == torch.float32:
        return WIDE if weight_format == "plain" else replace(WIDE, inputs=BLOCK_INPUTS)
    rows = DETERMINISTIC_ROWS if deterministic else min(TALLEST_ROWS, power_of_two(num_rows, 16))
    if weight_format == "plain" and rows == TALLEST_ROWS and arch < HOPPER:
        return TALL_BEFORE_HOPPER
    return (PLAIN if weight_format == "plain" else WORDS)[rows]


def choose_splits(num_programs: int, deterministic: bool) -> int:
    """Choose how many programs share the common dimension of a tile: more than one if the GPU would not be full.

    `deterministic`: one for every batch, because the parts' sums depend on the cuts.
    """
    return 1 if deterministic else max(1, min(MOST_SPLITS, TARGET_PROGRAMS // max(1, num_programs)))


@triton.jit
def multiply_tile(
    x_rows: tl.tensor,
    w: tl.tensor,
    outputs: tl.tensor,
    dim: tl.tensor,
    split: tl.tensor,
    num_splits: tl.tensor,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
    FORMAT: tl.constexpr,
) -> tl.tensor:
    """Multiply OUTPUTS rows of w by ROWS rows of x, `dim` long: w @ x.T, [OUTPUTS, ROWS] float32, without the scale.

    `x_rows`: pointers to the rows of x; `outputs`: the rows of w, int64. All must exist: rows and outputs behind the
    end repeat another one, so that no load needs a mask. EVEN: `dim` is a multiple of INPUTS. Only part `split` of
    `num_splits` equal parts of the common dimension is multiplied.
    """
    per_split = tl.cdiv(tl.cdiv(dim, INPUTS), num_splits)
    first_block = split * per_split
    end_block = tl.minimum(first_block + per_split, tl.cdiv(dim, INPUTS))
    total = tl.zeros((OUTPUTS, ROWS), dtype=tl.float32)
    if FORMAT == "plain":
        inputs = tl.arange(0, INPUTS)
        w_rows = w + outputs * dim
        for block in range(first_block, end_block):
            k = block * INPUTS + inputs
            x = load_inputs(x_rows[None, :] + k[:, None], (k < dim)[:, None], EVEN)
            weights = load_inputs(w_rows[:, None] + k[None, :], (k < dim)[None, :], EVEN)
            total = tl.dot(weights, x, total, input_precision="ieee")
    else:
        place = tl.arange(0, INPUTS // 4)
        w_rows = w + outputs * (tl.cdiv(dim, INPUTS) * (INPUTS // 4))
        for block in range(first_block, end_block):
            words = tl.load(w_rows[:, None] + (block * (INPUTS // 4) + place)[None, :])
            weights = widen(words, FORMAT, x_rows.dtype.element_ty)
            for plane in tl.static_range(4):
                k = block * INPUTS + plane * (INPUTS // 4) + place
                x = load_inputs(x_rows[None, :] + k[:, None], (k < dim)[:, None], EVEN)
                total = tl.dot(weights[plane], x, total, input_precision="ieee")
    return total


@triton.jit
def load_inputs(pointers: tl.tensor, inside: tl.tensor, EVEN: tl.constexpr) -> tl.tensor:
    """Load a tile, with zeros behind the end of the common dimension."""
    return tl.load(pointers) if EVEN else tl.load(pointers, mask=inside, other=0.0)
