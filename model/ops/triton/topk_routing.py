"""Route rows to their top-k experts and gather the rows of each expert into tiles, all on the device.

Letters: T rows, E experts, Kmax the largest number of experts of any row, P = T * Kmax pairs (row, choice).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.interface import RoutingRequest
from model.ops.triton.launch import Launch, blocks, power_of_two

# mypy: disable-error-code="untyped-decorator"


@triton.jit(do_not_specialize=["max_k"], do_not_specialize_on_alignment=["allowed", "expert_ids"])
def gate_kernel(
    x: tl.tensor,
    gate: tl.tensor,
    experts_per_token: tl.tensor,
    allowed: tl.tensor,
    expert_ids: tl.tensor,
    shares: tl.tensor,
    dim: tl.tensor,
    num_experts: tl.tensor,
    max_k: tl.tensor,
    MASKED: tl.constexpr,
    EXPERTS: tl.constexpr,
    INPUTS: tl.constexpr,
) -> None:
    """Compute one row's gate logits in float32, its k experts, and the softmax over their logits.

    Experts are in descending order of their logits, ties to the lower id. NaN logits are chosen last and make all
    shares of the row NaN; ids stay in range.
    """
    row = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, EXPERTS)
    inputs = tl.arange(0, INPUTS)
    exists = experts < num_experts
    total = tl.zeros((EXPERTS, INPUTS), dtype=tl.float32)
    for start in range(0, dim, INPUTS):
        k = start + inputs
        values = tl.load(x + row * dim + k, mask=k < dim, other=0.0).to(tl.float32)
        weights = tl.load(
            gate + experts[:, None] * dim + k[None, :], mask=exists[:, None] & (k < dim)[None, :], other=0.0
        )
        total += weights * values[None, :]
    logits = tl.sum(total, axis=1)
    ranked = tl.where(logits == logits, logits, float("-inf"))
    remaining = exists
    if MASKED:
        remaining = remaining & (tl.load(allowed + row * num_experts + experts, mask=exists, other=0) != 0)
    count = tl.load(experts_per_token + row)
    largest = tl.max(tl.where(remaining, ranked, float("-inf")))
    choices = tl.arange(0, EXPERTS)
    ids = tl.full((EXPERTS,), -1, dtype=tl.int32)
    choice_weights = tl.zeros((EXPERTS,), dtype=tl.float32)
    for choice in range(max_k):
        best = tl.max(tl.where(remaining, ranked, float("-inf")))
        expert = tl.min(tl.where(remaining & (ranked == best), experts, EXPERTS))
        taken = (choice < count) & (expert < num_experts)
        weight = tl.exp(tl.sum(tl.where(experts == expert, logits, 0.0)) - largest)
        ids = tl.where((choices == choice) & taken, expert, ids)
        choice_weights = tl.where((choices == choice) & taken, weight, choice_weights)
        remaining = remaining & (experts != expert)
    target = row * max_k + choices
    tl.store(expert_ids + target, ids, mask=choices < max_k)
    tl.store(shares + target, choice_weights / tl.sum(choice_weights), mask=choices < max_k)


@triton.jit(do_not_specialize=["num_pairs", "num_tiles"], do_not_specialize_on_alignment=["expert_ids"])
def align_kernel(
    expert_ids: tl.tensor,
    tile_pairs: tl.tensor,
    tile_expert: tl.tensor,
    num_pairs: tl.tensor,
    num_tiles: tl.tensor,
    num_experts: tl.tensor,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
) -> None:
    """Write the tiles of expert e = program_id(0): its pairs in ascending order, padded with num_pairs to full tiles.

    The program behind the last expert marks the tiles that remain empty with expert -1.
    """
    expert = tl.program_id(0)
    experts = tl.arange(0, EXPERTS)
    pairs = tl.arange(0, PAIRS)
    counts = tl.zeros((EXPERTS,), dtype=tl.int32)
    for start in range(0, num_pairs, PAIRS):
        ids = tl.load(expert_ids + start + pairs, mask=start + pairs < num_pairs, other=-1)
        counts += tl.sum((ids[None, :] == experts[:, None]).to(tl.int32), axis=1)
    tiles = (counts + ROWS - 1) // ROWS
    first_tile = tl.sum(tl.where(experts < expert, tiles, 0))
    if expert == num_experts:
        for start in range(0, num_tiles, PAIRS):
            tile = start + pairs
            tl.store(tile_expert + tile, -1, mask=(tile >= first_tile) & (tile < num_tiles))
    else:
        own_tiles = tl.sum(tl.where(experts == expert, tiles, 0))
        for start in range(0, own_tiles, PAIRS):
            tl.store(tile_expert + first_tile + start + pairs, expert, mask=start + pairs < own_tiles)
        done = first_tile * ROWS
        for start in range(0, num_pairs, PAIRS):
            pair = start + pairs
            ids = tl.load(expert_ids + pair, mask=pair < num_pairs, other=-1)
            mine = (ids == expert).to(tl.int32)
            tl.store(tile_pairs + done + tl.cumsum(mine) - mine, pair, mask=mine != 0)
            done += tl.sum(mine)
        end = (first_tile + own_tiles) * ROWS
        padding = done + tl.arange(0, ROWS)
        tl.store(tile_pairs + padding, num_pairs, mask=padding < end)


@dataclass(frozen=True)
class RoutedTiles:
    """Experts of each row, and tiles of pairs that share an expert; each pair is in one tile. Example in `route`."""

    expert_ids: Tensor  # [T, Kmax] int32: by descending gate logit, -1 from the row's k on
    shares: Tensor  # [T, Kmax] float32: the weight of each expert, 0 from k on
    tile_pairs: Tensor  # [tiles * rows] int32: pair = row * Kmax + choice; P pads a tile
    tile_expert: Tensor  # [tiles] int32, -1: the tile is empty


def route(launch: Launch, x: Tensor, gate: Tensor, request: RoutingRequest, rows: int) -> RoutedTiles:
    """Route x [T, D] by gate [E, D] float32 into tiles of `rows` pairs. Writes request.expert_ids.

    Example, tiles of 2 rows, 3 rows of x with one expert each, expert_ids = [1, 0, 1]: tile_expert = [0, 1, -1, ...],
    tile_pairs = [1, 3, 0, 2, ...].
    """
    (num_rows, dim), num_experts, expert_ids = x.shape, len(gate), request.expert_ids
    max_k = expert_ids.shape[1]
    shares = x.new_empty(num_rows, max_k, dtype=torch.float32)
    padded, allowed = power_of_two(num_experts), request.allowed
    launch(
        gate_kernel,
        (num_rows,),
        *(
            x,
            gate,
            request.experts_per_token,
            gate if allowed is None else allowed,
            expert_ids,
            shares,
            dim,
            num_experts,
            max_k,
        ),
        MASKED=allowed is not None,
        EXPERTS=padded,
        INPUTS=min(power_of_two(dim), max(16, 4096 // padded)),
        num_warps=4,
        num_stages=1,
    )
    num_pairs = num_rows * max_k
    num_tiles = num_pairs // rows + min(num_experts, num_pairs)
    tile_pairs = torch.empty(num_tiles * rows, dtype=torch.int32, device=x.device)
    tile_expert = torch.empty(num_tiles, dtype=torch.int32, device=x.device)
    launch(
        align_kernel,
        (num_experts + 1,),
        *(expert_ids, tile_pairs, tile_expert, num_pairs, num_tiles, num_experts),
        EXPERTS=power_of_two(num_experts, 2),
        ROWS=rows,
        PAIRS=min(1024, rows * power_of_two(num_experts, 2)),  # about the number of pairs for which `rows` are chosen
        num_warps=4,
        num_stages=1,
    )
    return RoutedTiles(expert_ids, shares, tile_pairs, tile_expert)


def one_expert(num_rows: int, rows: int, device: torch.device) -> RoutedTiles:
    """Route all rows to expert 0 with weight 1, for a dense FFN."""
    num_tiles = blocks(num_rows, rows)
    pairs = torch.arange(num_tiles * rows, dtype=torch.int32, device=device).clamp(max=num_rows)
    expert = torch.zeros(num_tiles, dtype=torch.int32, device=device)
    expert_ids = torch.zeros(num_rows, 1, dtype=torch.int32, device=device)
    return RoutedTiles(expert_ids, torch.ones(num_rows, 1, device=device), pairs, expert)
