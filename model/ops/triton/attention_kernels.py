"""Kernels of paged attention: the query heads of a KV head share one tile, keys are processed span by span.

A row's keys are cut at every multiple of SPAN. Each span gives a partial softmax (maximum, sum, weighted values), and
partials are merged in ascending order. Sequences with one row spread their spans over programs and merge in a second
kernel; the rows of a prompt's chunk process all spans in one program. Both compute the same sums in the same order.
Keys that no row of a tile may see are never read. Letters as in model/ops/interface.py; R = H / G, and a tile has
TILE = queries * R rows (query by query, head by head), KEYS keys at a time.
"""

import triton
import triton.language as tl

from model.ops.triton.attention_tile import attend_span, empty_partial, load_queries, merge

# mypy: disable-error-code="untyped-decorator"

SPAN = 256
TARGET_PROGRAMS = 528  # four on each of the 132 multiprocessors of an H100
LOG2_E = 1.4426950408889634


@triton.jit
def chunk_kernel(
    q: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    k_scales: tl.tensor,
    v_scales: tl.tensor,
    out: tl.tensor,
    query_start: tl.tensor,
    context_len: tl.tensor,
    tables: tl.tensor,
    tile_sequence: tl.tensor,
    tile_first_row: tl.tensor,
    table_width: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    window: tl.tensor,
    scale: tl.tensor,
    BLOCK_SIZE: tl.constexpr,
    PER_KV_HEAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROW: tl.constexpr,
    SPAN: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    MERGES: tl.constexpr,
) -> None:
    """Attend one tile of a sequence with several rows, for one KV head.

    MERGES: merge span by span, as decode_kernel and merge_kernel do; else all keys are one span.
    """
    sequence = tl.load(tile_sequence + tl.program_id(0))
    kv_head = tl.program_id(1)
    first_row = tl.load(tile_first_row + tl.program_id(0))
    start_row, end_row = tl.load(query_start + sequence), tl.load(query_start + sequence + 1)
    if (end_row - start_row > 1) & (first_row < end_row):
        num_rows = tl.minimum(end_row - first_row, TILE // PER_KV_HEAD)
        queries, place, row, exists = load_queries(
            q, first_row, num_rows, kv_head, num_heads, PER_KV_HEAD, HEAD_DIM, TILE, BLOCK_DIM
        )
        first_position = tl.load(context_len + sequence) - end_row + first_row
        positions = tl.where(exists, first_position + row, -1)
        lowest = tl.maximum(first_position - window + 1, 0)
        end = first_position + num_rows
        best, total, values = empty_partial(TILE, BLOCK_DIM)
        table = tables + sequence.to(tl.int64) * table_width
        if MERGES:
            for span in range(lowest // SPAN, tl.cdiv(end, SPAN)):
                span_best, span_total, span_values = empty_partial(TILE, BLOCK_DIM)
                span_best, span_total, span_values = attend_span(
                    span_best,
                    span_total,
                    span_values,
                    queries,
                    positions,
                    window,
                    table,
                    k_cache,
                    v_cache,
                    k_scales,
                    v_scales,
                    kv_head,
                    num_kv_heads,
                    tl.maximum(span * SPAN, lowest // KEYS * KEYS),
                    tl.minimum(span * SPAN + SPAN, end),
                    lowest,
                    scale,
                    BLOCK_SIZE,
                    HEAD_DIM,
                    ROW,
                    KEYS,
                    BLOCK_DIM,
                )
                best, total, values = merge(best, total, values, span_best, span_total, span_values)
        else:
            best, total, values = attend_span(
                best,
                total,
                values,
                queries,
                positions,
                window,
                table,
                k_cache,
                v_cache,
                k_scales,
                v_scales,
                kv_head,
                num_kv_heads,
                lowest // KEYS * KEYS,
                end,
                lowest,
                scale,
                BLOCK_SIZE,
                HEAD_DIM,
                ROW,
                KEYS,
                BLOCK_DIM,
            )
        numbers = tl.arange(0, BLOCK_DIM)
        mask = exists[:, None] & (numbers < HEAD_DIM)[None, :]
        tl.store(out + place[:, None] + numbers[None, :], (values / total[:, None]).to(out.dtype.element_ty), mask=mask)


@triton.jit
def decode_kernel(
    q: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    k_scales: tl.tensor,
    v_scales: tl.tensor,
    partial_values: tl.tensor,
    partial_sums: tl.tensor,
    query_start: tl.tensor,
    context_len: tl.tensor,
    tables: tl.tensor,
    table_width: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    window: tl.tensor,
    num_spans: tl.tensor,
    num_splits: tl.tensor,
    scale: tl.tensor,
    BLOCK_SIZE: tl.constexpr,
    PER_KV_HEAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROW: tl.constexpr,
    SPAN: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
) -> None:
    """Compute partials of a sequence with one row: one KV head, every num_splits-th span."""
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row = tl.load(query_start + sequence)
    if tl.load(query_start + sequence + 1) - first_row == 1:
        queries, _, _, exists = load_queries(
            q, first_row, 1, kv_head, num_heads, PER_KV_HEAD, HEAD_DIM, TILE, BLOCK_DIM
        )
        end = tl.load(context_len + sequence)
        positions = tl.where(exists, end - 1, -1)
        lowest = tl.maximum(end - window, 0)
        first_span = lowest // SPAN
        table = tables + sequence.to(tl.int64) * table_width
        index = tl.arange(0, TILE)
        numbers = tl.arange(0, BLOCK_DIM)
        for span in range(first_span + split, tl.cdiv(end, SPAN), num_splits):
            best, total, values = empty_partial(TILE, BLOCK_DIM)
            best, total, values = attend_span(
                best,
                total,
                values,
                queries,
                positions,
                window,
                table,
                k_cache,
                v_cache,
                k_scales,
                v_scales,
                kv_head,
                num_kv_heads,
                tl.maximum(span * SPAN, lowest // KEYS * KEYS),
                tl.minimum(span * SPAN + SPAN, end),
                lowest,
                scale,
                BLOCK_SIZE,
                HEAD_DIM,
                ROW,
                KEYS,
                BLOCK_DIM,
            )
            place = (sequence.to(tl.int64) * num_spans + span - first_span) * num_heads + kv_head * PER_KV_HEAD + index
            mask = exists[:, None] & (numbers < HEAD_DIM)[None, :]
            tl.store(partial_values + place[:, None] * HEAD_DIM + numbers[None, :], values, mask=mask)
            tl.store(partial_sums + place * 2, best, mask=exists)
            tl.store(partial_sums + place * 2 + 1, total, mask=exists)


@triton.jit
def merge_kernel(
    partial_values: tl.tensor,
    partial_sums: tl.tensor,
    out: tl.tensor,
    query_start: tl.tensor,
    context_len: tl.tensor,
    num_heads: tl.tensor,
    window: tl.tensor,
    num_spans: tl.tensor,
    HEAD_DIM: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
) -> None:
    """Merge the partials of a sequence with one row, for BLOCK_HEADS of its heads, in ascending spans."""
    sequence = tl.program_id(0)
    row = tl.load(query_start + sequence)
    if tl.load(query_start + sequence + 1) - row == 1:
        heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        numbers = tl.arange(0, BLOCK_DIM)
        exists = heads < num_heads
        mask = exists[:, None] & (numbers < HEAD_DIM)[None, :]
        end = tl.load(context_len + sequence)
        first_span = tl.maximum(end - window, 0) // SPAN
        best, total, values = empty_partial(BLOCK_HEADS, BLOCK_DIM)
        for span in range(tl.cdiv(end, SPAN) - first_span):
            place = (sequence.to(tl.int64) * num_spans + span) * num_heads + heads
            span_best = tl.load(partial_sums + place * 2, mask=exists, other=0.0)
            span_total = tl.load(partial_sums + place * 2 + 1, mask=exists, other=1.0)
            span_values = tl.load(partial_values + place[:, None] * HEAD_DIM + numbers[None, :], mask=mask, other=0.0)
            best, total, values = merge(best, total, values, span_best, span_total, span_values)
        target = out + (row.to(tl.int64) * num_heads + heads[:, None]) * HEAD_DIM + numbers[None, :]
        tl.store(target, (values / total[:, None]).to(out.dtype.element_ty), mask=mask)
