"""Rotate q and k by their positions and store k and v in the KV cache, in one pass.

Pair i of a head consists of the numbers i and i + K/2. Shape letters as in model/ops/interface.py.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.triton.kv_blocks import number_offsets, scale_offsets, with_scales
from model.ops.triton.launch import Launch, blocks, power_of_two, wait_for_inputs
from model.ops.triton.pending_sum import Pending, load_pending, pending_arguments

# mypy: disable-error-code="untyped-decorator"

HEADS_PER_PROGRAM = 8


def rotary_angles(
    positions: Tensor, head_dim: int, theta: float, divisors: tuple[float, ...] = (), factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of position / theta^(2i/K) / divisor i for pair i, each times `factor`: [T, K/2] float32 each.
    No `divisors`: all are 1."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    frequencies = 1.0 / theta**exponents  # [K/2]
    if divisors:
        frequencies /= _on_device(divisors, positions.device)
    angles = positions.float()[:, None] * frequencies  # [T, K/2]
    cos, sin = angles.cos(), angles.sin()
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)  # no launches for what changes nothing


@cache
def _on_device(divisors: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the divisors as a tensor. It is kept: a CUDA graph cannot capture a copy from the host."""
    return torch.tensor(divisors, dtype=torch.float32, device=device)


@triton.jit
def store_rows(
    cache: tl.tensor,
    scales: tl.tensor,
    slot: tl.tensor,
    heads: tl.tensor,
    num_kv_heads: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    mask: tl.tensor,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROW: tl.constexpr,
) -> None:
    """Store KV heads [heads] of one slot, given as halves [heads, pairs] each.

    ROW is the number of elements of a cached row: 2 * HALF, or 4 more for int8 (model/ops/reference/kv_int8.py).
    """
    pairs = tl.arange(0, BLOCK_HALF)
    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    target = (
        cache + number_offsets(block, offset, heads, num_kv_heads, BLOCK_SIZE, 2 * HALF, ROW)[:, None] + pairs[None, :]
    )
    if ROW != 2 * HALF:
        a, b = tl.where(mask, first.to(tl.float32), 0.0), tl.where(mask, second.to(tl.float32), 0.0)
        largest = tl.max(tl.maximum(tl.abs(a), tl.abs(b)), 1)
        poison = tl.sum(a * 0.0 + b * 0.0, 1)  # 0, or NaN if a number is NaN or Inf
        scaled = largest >= 1e-30
        inverse = tl.where(scaled, tl.div_rn(127.0, tl.where(scaled, largest, 1.0)), 0.0) + poison
        a, b = to_bytes(a * inverse[:, None]), to_bytes(b * inverse[:, None])
        tl.store(target, a, mask=mask)
        tl.store(target + HALF, b, mask=mask)
        scale = tl.where(scaled, tl.div_rn(largest, 127.0), 0.0) + poison
        has_pairs = tl.max(mask.to(tl.int32), 1) != 0
        place = scale_offsets(block, offset, heads, num_kv_heads, BLOCK_SIZE, 2 * HALF, ROW)
        tl.store(scales + place, scale, mask=has_pairs)
    else:
        tl.store(target, first.to(cache.dtype.element_ty), mask=mask)
        tl.store(target + HALF, second.to(cache.dtype.element_ty), mask=mask)


@triton.jit
def to_bytes(numbers: tl.tensor) -> tl.tensor:
    """Round numbers in -127 .. 127 half to even: adding 1.5 * 2^23 leaves no bits for a fraction. NaN becomes 0."""
    rounded = (numbers + 12582912.0) - 12582912.0
    return tl.where(rounded == rounded, rounded, 0.0).to(tl.int8)


@triton.jit
def rotate(
    first: tl.tensor,
    second: tl.tensor,
    cosines: tl.tensor,
    sines: tl.tensor,
    row: tl.tensor,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Rotate heads of one row, given as halves [heads, pairs] each, by the row's angles [T, K/2]."""
    pairs = tl.arange(0, BLOCK_HALF)
    cosine = tl.load(cosines + row * HALF + pairs, mask=pairs < HALF, other=0.0)[None, :]
    sine = tl.load(sines + row * HALF + pairs, mask=pairs < HALF, other=0.0)[None, :]
    a, b = first.to(tl.float32), second.to(tl.float32)
    return (a * cosine - b * sine).to(first.dtype), (b * cosine + a * sine).to(first.dtype)


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def rotate_kernel(
    qkv: tl.tensor,
    cosines: tl.tensor,
    sines: tl.tensor,
    slots: tl.tensor,
    q: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    k_scales: tl.tensor,
    v_scales: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    num_rows: tl.tensor,
    num_splits: tl.tensor,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    KIND: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Rotate BLOCK_HEADS of the H + 2G heads of one row and store each to q or its cache."""
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)  # [heads]
    pairs = tl.arange(0, BLOCK_HALF)  # [pairs]
    total = num_heads + 2 * num_kv_heads
    inside = (heads < total)[:, None] & (pairs < HALF)[None, :]
    place, width = heads[:, None] * (2 * HALF) + pairs[None, :], total * (2 * HALF)
    dtype: tl.constexpr = q.dtype.element_ty
    first = load_pending(qkv, qkv, qkv, row, place, inside, num_rows, width, 1, num_splits, KIND, dtype)
    second = load_pending(qkv, qkv, qkv, row, place + HALF, inside, num_rows, width, 1, num_splits, KIND, dtype)
    a, b = rotate(first, second, cosines, sines, row, HALF, BLOCK_HALF)

    is_q = inside & (heads < num_heads)[:, None]
    to_q = q + (row * num_heads + heads[:, None]) * (2 * HALF) + pairs[None, :]
    tl.store(to_q, a, mask=is_q)
    tl.store(to_q + HALF, b, mask=is_q)

    slot = tl.load(slots + row).to(tl.int64)
    k_heads = heads - num_heads
    v_heads = k_heads - num_kv_heads
    is_k = inside & ((k_heads >= 0) & (v_heads < 0))[:, None]
    is_v = inside & (v_heads >= 0)[:, None]
    store_rows(k_cache, k_scales, slot, k_heads, num_kv_heads, a, b, is_k, HALF, BLOCK_HALF, BLOCK_SIZE, ROW)
    store_rows(v_cache, v_scales, slot, v_heads, num_kv_heads, first, second, is_v, HALF, BLOCK_HALF, BLOCK_SIZE, ROW)


def rope_and_store_kv(
    launch: Launch,
    qkv: Pending,
    angles: tuple[Tensor, Tensor],
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Rotate and store: qkv [T, (H + 2G) * K], caches [num_blocks, block_size, G, K or K + 4] -> q [T, H, K]
    of `dtype`.

    Writes the caches at slots [T].
    """
    values, _, _, _, num_splits, kind = pending_arguments(qkv)
    num_rows, head_dim, (num_kv_heads, row) = len(slots), 2 * angles[0].shape[1], k_cache.shape[2:]
    num_heads = values.shape[-1] // head_dim - 2 * num_kv_heads
    q = values.new_empty(num_rows, num_heads, head_dim, dtype=dtype)
    launch(
        rotate_kernel,
        (num_rows, blocks(num_heads + 2 * num_kv_heads, HEADS_PER_PROGRAM)),
        *(values, *angles, slots, q, *with_scales(k_cache, v_cache), num_heads, num_kv_heads, num_rows, num_splits),
        HALF=head_dim // 2,
        BLOCK_SIZE=k_cache.shape[1],
        ROW=row,
        BLOCK_HALF=power_of_two(head_dim // 2),
        BLOCK_HEADS=HEADS_PER_PROGRAM,
        KIND=kind,
        num_warps=4,
        num_stages=1,
    )
    return q
