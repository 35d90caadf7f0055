"""Parts of both attention kernels: load a tile's queries, and add a span of keys to a partial softmax.

Letters as in model/ops/triton/attention/kernels.py.
"""

import triton
import triton.language as tl

from model.ops.triton.kv_blocks import number_offsets, scale_offsets

# mypy: disable-error-code="untyped-decorator"


@triton.jit
def empty_partial(ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the softmax over no keys: maxima [ROWS], sums [ROWS], weighted values [ROWS, K]."""
    best = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    return best, tl.zeros((ROWS,), dtype=tl.float32), tl.zeros((ROWS, BLOCK_DIM), dtype=tl.float32)


@triton.jit
def merge(
    best: tl.tensor,
    total: tl.tensor,
    values: tl.tensor,
    other_best: tl.tensor,
    other_total: tl.tensor,
    other_values: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Merge two partial softmaxes (Milakov & Gimelshein 2018, eq. 4): maxima and sums [TILE], values [TILE, K]."""
    maximum = tl.maximum(best, other_best)
    reference = tl.where(maximum == float("-inf"), 0.0, maximum)
    factor, other_factor = tl.exp2(best - reference), tl.exp2(other_best - reference)
    merged = values * factor[:, None] + other_values * other_factor[:, None]
    return maximum, total * factor + other_total * other_factor, merged


@triton.jit
def attend_span(
    q: tl.tensor,
    positions: tl.tensor,
    source: tl.tensor,
    lowest: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROW: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the partial softmax over positions begin .. end - 1, without reading any below `lowest`.

    `begin` is a multiple of KEYS; scores are exponents of 2. `source`: block table, K, V and their scales
    (kv_blocks.with_scales), KV head, number of KV heads, window, factor of the scores. Cached rows have ROW elements:
    HEAD_DIM, or HEAD_DIM + 4 for int8.
    """
    table, k_cache, v_cache, k_scales, v_scales, kv_head, num_kv_heads, window, scale = source
    numbers = tl.arange(0, BLOCK_DIM)
    is_number = numbers < HEAD_DIM
    best, total, values = empty_partial(TILE, BLOCK_DIM)
    for start in range(begin, end, KEYS):
        keys = start + tl.arange(0, KEYS)
        readable = (keys >= lowest) & (keys < end)
        block = tl.load(table + keys // BLOCK_SIZE, mask=readable, other=0).to(tl.int64)
        rows = number_offsets(block, keys % BLOCK_SIZE, kv_head, num_kv_heads, BLOCK_SIZE, HEAD_DIM, ROW)
        k_mask = readable[None, :] & is_number[:, None]
        k = tl.load(k_cache + rows[None, :] + numbers[:, None], mask=k_mask, other=0.0)
        scores = tl.dot(q, k.to(q.dtype), input_precision="ieee") * scale
        if ROW != HEAD_DIM:
            place = scale_offsets(block, keys % BLOCK_SIZE, kv_head, num_kv_heads, BLOCK_SIZE, HEAD_DIM, ROW)
            scores = scores * tl.load(k_scales + place, mask=readable, other=0.0)[None, :]
        visible = (keys[None, :] <= positions[:, None]) & (keys[None, :] > positions[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))
        maximum = tl.maximum(best, tl.max(scores, 1))
        reference = tl.where(maximum == float("-inf"), 0.0, maximum)
        weights = tl.exp2(scores - reference[:, None])
        factor = tl.exp2(best - reference)
        total = total * factor + tl.sum(weights, 1)
        if ROW != HEAD_DIM:
            weights = weights * tl.load(v_scales + place, mask=readable, other=0.0)[None, :]
        v_mask = readable[:, None] & is_number[None, :]
        v = tl.load(v_cache + rows[:, None] + numbers[None, :], mask=v_mask, other=0.0)
        values = values * factor[:, None] + tl.dot(weights.to(q.dtype), v.to(q.dtype), input_precision="ieee")
        best = maximum
    return best, total, values


@triton.jit
def load_queries(
    q: tl.tensor,
    first_row: tl.tensor,
    num_rows: tl.tensor,
    kv_head: tl.tensor,
    num_heads: tl.tensor,
    PER_KV_HEAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Load a tile's queries: those of `num_rows` rows from `first_row` on, at most TILE // PER_KV_HEAD.

    Returns the queries [TILE, K], their offsets in [T, H, K] (in numbers), the row of the chunk that each belongs to,
    and a mask of those that exist, [TILE] each.
    """
    index = tl.arange(0, TILE)
    numbers = tl.arange(0, BLOCK_DIM)
    row = index // PER_KV_HEAD
    exists = row < num_rows
    head = kv_head * PER_KV_HEAD + index % PER_KV_HEAD
    place = ((first_row + row).to(tl.int64) * num_heads + head) * HEAD_DIM
    mask = exists[:, None] & (numbers < HEAD_DIM)[None, :]
    return tl.load(q + place[:, None] + numbers[None, :], mask=mask, other=0.0), place, row, exists
