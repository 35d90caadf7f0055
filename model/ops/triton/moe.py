"""Products of the experts over routed tiles: gate-up with SiLU, and down.

Without atomics: each pair (and split) has its own output row. The next kernel sums those of a row, by descending gate
logit (model/ops/triton/pending_sum.py). Letters as in
model/ops/triton/topk_routing.py; F hidden dim of an expert.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.cut import PANEL
from model.group import ALONE, Group
from model.ops.triton.gemm_tiles import TALLEST_ROWS, Tiling, choose_splits, multiply_tile
from model.ops.triton.launch import Launch, blocks, wait_for_inputs
from model.ops.triton.packed_weights import TritonMatrix
from model.ops.triton.pending_sum import Parts
from model.ops.triton.topk_routing import RoutedTiles

# mypy: disable-error-code="untyped-decorator"

WIDEST_DOWN = 128  # outputs of a tile of the down product: 256 spill, because its results are float32


@dataclass(frozen=True)
class TritonExperts:
    """E SwiGLU FFNs; a dense layer has a single one. A rank of several has some outputs of each matrix."""

    w13: TritonMatrix  # [E, 2F, D]: rows of w1 and w3 in turn, so that one product gives both
    w2: TritonMatrix  # [E, D, F]


@triton.jit(do_not_specialize=["num_tiles", "num_pairs", "max_k"])
def gate_up_kernel(
    x: tl.tensor,
    w13: tl.tensor,
    scales: tl.tensor,
    hidden: tl.tensor,
    tile_pairs: tl.tensor,
    tile_expert: tl.tensor,
    num_tiles: tl.tensor,
    num_pairs: tl.tensor,
    max_k: tl.tensor,
    hidden_dim: tl.tensor,
    dim: tl.tensor,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
    FORMAT: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Compute hidden[pair] = silu(w1 x) * (w3 x) for the pairs of a tile and OUTPUTS / 2 of the F hidden numbers."""
    wait_for_inputs(EARLY)
    tile = tl.program_id(0) % num_tiles
    expert = tl.load(tile_expert + tile).to(tl.int64)
    if expert >= 0:
        pairs = tl.load(tile_pairs + tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        first = (tl.program_id(0) // num_tiles) * OUTPUTS
        outputs = first + tl.arange(0, OUTPUTS)
        row_mask, output_mask = pairs < num_pairs, outputs < 2 * hidden_dim
        x_rows = x + tl.where(row_mask, pairs // max_k, 0) * dim
        w_rows = expert * 2 * hidden_dim + tl.where(output_mask, outputs, 0)
        total = multiply_tile(x_rows, w13, w_rows, dim, 0, 1, ROWS, OUTPUTS, INPUTS, EVEN, FORMAT)
        if FORMAT != "plain":
            total = total * tl.load(scales + w_rows)[:, None]
        gate, up = total.reshape(OUTPUTS // 2, 2, ROWS).permute(0, 2, 1).split()
        activated = gate / (1.0 + tl.exp(-gate)) * up
        numbers = first // 2 + tl.arange(0, OUTPUTS // 2)
        target = hidden + pairs[None, :] * hidden_dim + numbers[:, None]
        mask = (numbers < hidden_dim)[:, None] & row_mask[None, :]
        tl.store(target, activated.to(hidden.dtype.element_ty), mask=mask)


@triton.jit
def in_groups(
    program: tl.tensor, num_tiles: tl.tensor, num_blocks: tl.tensor, GROUP: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Return a program's tile and block of outputs: all tiles of one group of blocks, then those of the next group.

    Example: 2 tiles, 3 blocks, GROUP 2: the pairs (tile, block) are (0, 0) (0, 1) (1, 0) (1, 1) (0, 2) (1, 2).
    """
    group = program // (GROUP * num_tiles)
    size = tl.minimum(num_blocks - group * GROUP, GROUP)
    inside = program % (GROUP * num_tiles)
    return inside // size, group * GROUP + inside % size


@triton.jit(do_not_specialize=["num_tiles", "num_pairs", "num_splits"])
def down_kernel(
    hidden: tl.tensor,
    w2: tl.tensor,
    scales: tl.tensor,
    by_pair: tl.tensor,
    tile_pairs: tl.tensor,
    tile_expert: tl.tensor,
    num_tiles: tl.tensor,
    num_pairs: tl.tensor,
    dim: tl.tensor,
    hidden_dim: tl.tensor,
    num_splits: tl.tensor,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Compute by_pair[split, pair] = w2 hidden[pair], float32, for the pairs of a tile and OUTPUTS of the D numbers.

    A split sums a part of the F products; the kernel that adds the outputs to the residual adds the splits.
    """
    wait_for_inputs(EARLY)
    split = tl.program_id(1)
    tile, block = in_groups(tl.program_id(0), num_tiles, tl.cdiv(dim, OUTPUTS), GROUP)
    expert = tl.load(tile_expert + tile).to(tl.int64)
    if expert >= 0:
        pairs = tl.load(tile_pairs + tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        outputs = block * OUTPUTS + tl.arange(0, OUTPUTS)
        row_mask, output_mask = pairs < num_pairs, outputs < dim
        w_rows = expert * dim + tl.where(output_mask, outputs, 0)
        h_rows = hidden + tl.where(row_mask, pairs, 0) * hidden_dim
        total = multiply_tile(h_rows, w2, w_rows, hidden_dim, split, num_splits, ROWS, OUTPUTS, INPUTS, EVEN, FORMAT)
        if FORMAT != "plain":
            total = total * tl.load(scales + w_rows)[:, None]
        target = by_pair + (split.to(tl.int64) * num_pairs + pairs[None, :]) * dim + outputs[:, None]
        tl.store(target, total, mask=output_mask[:, None] & row_mask[None, :])


def experts(
    launch: Launch,
    x: Tensor,
    weights: TritonExperts,
    routing: RoutedTiles,
    tiling: Tiling,
    deterministic: bool = False,
    group: Group = ALONE,
) -> Parts:
    """Compute the routed experts: [T, D] -> parts of [T, D]. `tiling` has the routing's tile rows.

    A rank of a group has some outputs of w1 and w3, and of w2: it gathers the hidden rows, and returns parts of its
    columns. Hidden rows of absent experts are gathered without being computed, and never read.
    """
    (num_rows, dim), hidden_dim = x.shape, weights.w2.num_inputs
    own_hidden_dim, own_dim = weights.w13.values.shape[1] // 2, weights.w2.values.shape[1]
    max_k = routing.expert_ids.shape[1]
    num_pairs, num_tiles = num_rows * max_k, len(routing.tile_expert)
    hidden = x.new_empty(num_pairs, own_hidden_dim)
    down = replace(tiling, outputs=min(WIDEST_DOWN, tiling.outputs))
    num_splits = choose_splits(num_tiles * blocks(own_dim, down.outputs), deterministic)
    by_pair = x.new_empty(num_splits, num_pairs, own_dim, dtype=torch.float32)
    tiles = routing.tile_pairs, routing.tile_expert, num_tiles, num_pairs
    launch(
        gate_up_kernel,
        (num_tiles * blocks(2 * own_hidden_dim, tiling.outputs),),
        *(x, weights.w13.values, weights.w13.scale, hidden, *tiles, max_k, own_hidden_dim, dim),
        **_constants(tiling, weights.w13),
    )
    hidden = group.gather(hidden, hidden_dim, PANEL)
    launch(
        down_kernel,
        (num_tiles * blocks(own_dim, down.outputs), num_splits),
        *(hidden, weights.w2.values, weights.w2.scale, by_pair, *tiles, own_dim, hidden_dim, num_splits),
        **_constants(down, weights.w2),
        GROUP=grouped_blocks(tiling),
    )
    return Parts(by_pair, routing.shares, routing.expert_ids)


def grouped_blocks(tiling: Tiling) -> int:
    """Return how many blocks of outputs are computed in turn for a down tile, whose rows are cached meanwhile."""
    return 8 if tiling.rows == TALLEST_ROWS else 1


def _constants(tiling: Tiling, weight: TritonMatrix) -> dict[str, int | str]:
    return {
        "ROWS": tiling.rows,
        "OUTPUTS": tiling.outputs,
        "INPUTS": tiling.inputs,
        "EVEN": weight.num_inputs % tiling.inputs == 0,
        "FORMAT": weight.format,
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
    }
