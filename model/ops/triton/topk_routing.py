"""Route rows to their top-k experts and gather the rows of each expert into tiles, all on the device.

Letters: T rows, E experts, Kmax the largest number of experts of any row, P = T * Kmax pairs (row, choice).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.interface import RoutingRequest
from model.ops.triton.launch import Launch, blocks, power_of_two, wait_for_inputs

# mypy: disable-error-code="untyped-decorator"

GATE_NUMBERS = 32768


@triton.jit
def gate_logits(
    values: tl.tensor,
    gate: tl.tensor,
    dim: tl.tensor,
    inputs: tl.tensor,
    inside: tl.tensor,
    num_experts: tl.tensor,
    EXPERTS: tl.constexpr,
    GROUP: tl.constexpr,
) -> tl.tensor:
    """Return a row's gate logits [EXPERTS] in float32, from its numbers `values`; GROUP experts are read at a time."""
    experts = tl.arange(0, EXPERTS)
    wide = values.to(tl.float32)
    logits = tl.zeros((EXPERTS,), dtype=tl.float32)
    for first in tl.static_range(0, EXPERTS, GROUP):
        group = first + tl.arange(0, GROUP)
        mask = (group < num_experts)[:, None] & inside[None, :]
        weights = tl.load(gate + group[:, None] * dim + inputs[None, :], mask=mask, other=0.0)
        sums = tl.sum(weights * wide[None, :], axis=1)
        logits += tl.sum(tl.where(experts[:, None] == group[None, :], sums[None, :], 0.0), axis=1)
    return logits


@triton.jit
def choose_experts(
    logits: tl.tensor,
    row: tl.tensor,
    experts_per_token: tl.tensor,
    allowed: tl.tensor,
    expert_ids: tl.tensor,
    shares: tl.tensor,
    num_experts: tl.tensor,
    max_k: tl.tensor,
    MASKED: tl.constexpr,
    EXPERTS: tl.constexpr,
) -> None:
    """Write one row's k experts, and the softmax over their logits.

    Experts are in descending order of their logits, ties to the lower id. NaN logits are chosen last and make all
    shares of the row NaN; ids stay in range.
    """
    experts = tl.arange(0, EXPERTS)
    exists = experts < num_experts
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


@triton.jit(do_not_specialize=["max_k"], do_not_specialize_on_alignment=["allowed", "expert_ids"])
def gate_kernel(
    x: tl.tensor,
    gate: tl.tensor,
    experts_per_token: tl.tensor,
    allowed: tl.tensor,
    expert_ids: tl.tensor,
    shares: tl.tensor,
    num_experts: tl.tensor,
    max_k: tl.tensor,
    dim: tl.tensor,
    MASKED: tl.constexpr,
    EXPERTS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Choose one row's experts. A network's step does it in add_norm_kernel (model/ops/triton/rms_norm.py)."""
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    inputs = tl.arange(0, BLOCK)
    inside = inputs < dim
    values = tl.load(x + row * dim + inputs, mask=inside, other=0.0)
    logits = gate_logits(values, gate, dim, inputs, inside, num_experts, EXPERTS, GROUP)
    choose_experts(logits, row, experts_per_token, allowed, expert_ids, shares, num_experts, max_k, MASKED, EXPERTS)


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
    EARLY: tl.constexpr = False,
) -> None:
    """Write the tiles of expert e = program_id(0): its pairs in ascending order, padded with num_pairs to full tiles.

    The program behind the last expert marks the tiles that remain empty with expert -1.
    """
    wait_for_inputs(EARLY)
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
    (num_rows, dim), num_experts = x.shape, power_of_two(len(gate))
    shares = x.new_empty(request.expert_ids.shape, dtype=torch.float32)
    block = power_of_two(dim)
    launch(
        gate_kernel,
        (num_rows,),
        *(x, *request_arguments(gate, request, shares), dim),
        MASKED=request.allowed is not None,
        EXPERTS=num_experts,
        GROUP=experts_at_a_time(num_experts, block),
        BLOCK=block,
        num_warps=16,
        num_stages=1,
    )
    return gather_tiles(launch, request.expert_ids, shares, len(gate), rows)


def request_arguments(
    gate: Tensor, request: RoutingRequest, shares: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int, int]:
    """Return a routing kernel's arguments: gate, k, allowed experts, expert ids, shares, E, Kmax."""
    allowed = gate if request.allowed is None else request.allowed  # not read if absent
    ids = request.expert_ids
    return gate, request.experts_per_token, allowed, ids, shares, len(gate), ids.shape[1]


def experts_at_a_time(num_experts: int, block: int) -> int:
    """Return how many experts' gate rows of `block` numbers a program holds: 64 numbers for each of 512 threads."""
    return max(1, min(num_experts, GATE_NUMBERS // block))


def gather_tiles(launch: Launch, expert_ids: Tensor, shares: Tensor, num_experts: int, rows: int) -> RoutedTiles:
    """Gather the pairs [T, Kmax] of each expert into tiles of `rows`."""
    num_pairs, device = expert_ids.numel(), expert_ids.device
    num_tiles = num_pairs // rows + min(num_experts, num_pairs)
    tile_pairs = torch.empty(num_tiles * rows, dtype=torch.int32, device=device)
    tile_expert = torch.empty(num_tiles, dtype=torch.int32, device=device)
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
