"""RMSNorm in one pass, one program per row: alone, or behind the sum that it normalizes and before the gate."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.interface import RoutingRequest
from model.ops.triton.launch import Launch, power_of_two, wait_for_inputs
from model.ops.triton.pending_sum import Pending, load_pending, pending_arguments
from model.ops.triton.topk_routing import choose_experts, experts_at_a_time, gate_logits, request_arguments

# mypy: disable-error-code="untyped-decorator"


@triton.jit
def normalize(
    value: tl.tensor, weight: tl.tensor, dim: tl.tensor, eps: tl.tensor, columns: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    """Return value / sqrt(mean(value^2) + eps) * weight of one row, with the roundings of the reference."""
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide) / dim + eps)
    return tl.load(weight + columns, mask=inside, other=0.0) * (wide * scale).to(value.dtype)


@triton.jit
def rms_norm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    dim: tl.tensor,
    eps: tl.tensor,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Normalize one row."""
    wait_for_inputs(EARLY)
    start = tl.program_id(0).to(tl.int64) * dim
    columns = tl.arange(0, BLOCK)
    inside = columns < dim
    value = tl.load(x + start + columns, mask=inside, other=0.0)
    tl.store(normed + start + columns, normalize(value, weight, dim, eps, columns, inside), mask=inside)


UNSPECIALIZED = ["num_rows", "max_k", "num_splits"]


@triton.jit(
    do_not_specialize=[*UNSPECIALIZED, "gate_k"],
    do_not_specialize_on_alignment=["expert_ids", "allowed", "gate_ids"],
)
def add_norm_kernel(
    x: tl.tensor,
    pending: tl.tensor,
    shares: tl.tensor,
    expert_ids: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    normed: tl.tensor,
    num_rows: tl.tensor,
    dim: tl.tensor,
    max_k: tl.tensor,
    num_splits: tl.tensor,
    eps: tl.tensor,
    gate: tl.tensor,
    experts_per_token: tl.tensor,
    allowed: tl.tensor,
    gate_ids: tl.tensor,
    gate_shares: tl.tensor,
    num_experts: tl.tensor,
    gate_k: tl.tensor,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    GATED: tl.constexpr,
    MASKED: tl.constexpr,
    EXPERTS: tl.constexpr,
    GROUP: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Compute total = x + pending and its norm for one row. GATED: also choose the row's experts."""
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < dim
    value = tl.load(x + row * dim + columns, mask=inside, other=0.0)
    value += load_pending(
        pending, shares, expert_ids, row, columns, inside, num_rows, dim, max_k, num_splits, KIND, value.dtype
    )
    tl.store(total + row * dim + columns, value, mask=inside)
    normalized = normalize(value, weight, dim, eps, columns, inside)
    tl.store(normed + row * dim + columns, normalized, mask=inside)
    if GATED:
        logits = gate_logits(normalized, gate, dim, columns, inside, num_experts, EXPERTS, GROUP)
        choose_experts(
            logits, row, experts_per_token, allowed, gate_ids, gate_shares, num_experts, gate_k, MASKED, EXPERTS
        )


def rms_norm(launch: Launch, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalize rows: [T, D] -> [T, D]."""
    normed, dim = torch.empty_like(x), x.shape[-1]
    block = power_of_two(dim)
    launch(rms_norm_kernel, (len(x),), x, weight, normed, dim, eps, BLOCK=block, num_warps=_warps(block), num_stages=1)
    return normed


def add_rms_norm(launch: Launch, x: Tensor, pending: Pending, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x + pending and its norm, [T, D] each."""
    total, normed, _ = _add_norm(launch, x, pending, weight, eps, None, None)
    return total, normed


def add_norm_gate(
    launch: Launch, x: Tensor, pending: Pending, weight: Tensor, eps: float, gate: Tensor, request: RoutingRequest
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x + pending and its norm, [T, D] each, and the shares [T, Kmax] of the experts that the gate [E, D]
    chooses. Writes request.expert_ids."""
    return _add_norm(launch, x, pending, weight, eps, gate, request)


def _add_norm(
    launch: Launch,
    x: Tensor,
    pending: Pending,
    weight: Tensor,
    eps: float,
    gate: Tensor | None,
    request: RoutingRequest | None,
) -> tuple[Tensor, Tensor, Tensor]:
    total, normed, (num_rows, dim) = torch.empty_like(x), torch.empty_like(x), x.shape
    *parts, max_k, num_splits, kind = pending_arguments(pending)
    block = power_of_two(dim)
    gate_shares, routing = total, (total, total, total, total, total, 0, 0)
    if gate is not None and request is not None:
        gate_shares = x.new_empty(request.expert_ids.shape, dtype=torch.float32)
        routing = request_arguments(gate, request, gate_shares)
    num_experts = power_of_two(routing[5])
    launch(
        add_norm_kernel,
        (num_rows,),
        *(x, *parts, weight, total, normed, num_rows, dim, max_k, num_splits, eps, *routing),
        KIND=kind,
        BLOCK=block,
        GATED=gate is not None,
        MASKED=request is not None and request.allowed is not None,
        EXPERTS=num_experts,
        GROUP=experts_at_a_time(num_experts, block),
        num_warps=_warps(block) if gate is None else 16,
        num_stages=1,
    )
    return total, normed, gate_shares


def _warps(block: int) -> int:
    return max(1, min(16, block // 512))
