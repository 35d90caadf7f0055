"""Kernels of paged attention: the query heads of a KV head share one tile, keys are processed span by span.

Sequences with one row spread their keys over programs (splits). Each split gives a partial softmax (maximum, sum,
weighted values), which a second kernel merges in ascending order. The rows of a prompt's chunk process all their
keys in one program. SEPARATE: a row's keys are cut at every multiple of SPAN, for both kinds of rows, and merged in
order, so that both compute the same sums in the same order; else the cuts depend on the number of splits.
Keys that no row of a tile may see are never read. Letters as in model/ops/interface.py; R = H / G, and a tile has
TILE = queries * R rows (query by query, head by head), KEYS keys at a time.
"""

import triton
import triton.language as tl

from model.ops.triton.attention.tile import attend_span, empty_partial, load_queries, merge
from model.ops.triton.launch import wait_for_inputs

# mypy: disable-error-code="untyped-decorator"

LOG2_E = 1.4426950408889634


@triton.jit
def attend(
    queries: tl.tensor,
    positions: tl.tensor,
    source: tl.tensor,
    lowest: tl.tensor,
    end: tl.tensor,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROW: tl.constexpr,
    SPAN: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    SEPARATE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Attend to positions lowest .. end - 1: at once, or span by span, merged in order as merge_kernel does."""
    first = lowest // KEYS * KEYS
    if SEPARATE:
        best, total, values = empty_partial(TILE, BLOCK_DIM)
        for span in range(lowest // SPAN, tl.cdiv(end, SPAN)):
            begin, stop = tl.maximum(span * SPAN, first), tl.minimum(span * SPAN + SPAN, end)
            span_best, span_total, span_values = attend_span(
                queries, positions, source, lowest, begin, stop, BLOCK_SIZE, HEAD_DIM, ROW, TILE, KEYS, BLOCK_DIM
            )
            best, total, values = merge(best, total, values, span_best, span_total, span_values)
    else:
        best, total, values = attend_span(
            queries, positions, source, lowest, first, end, BLOCK_SIZE, HEAD_DIM, ROW, TILE, KEYS, BLOCK_DIM
        )
    return best, total, values


@triton.jit(do_not_specialize=["table_width"])
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
    SEPARATE: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Attend one tile of a sequence with several rows, for one KV head."""
    wait_for_inputs(EARLY)
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
        lowest, end = tl.maximum(first_position - window + 1, 0), first_position + num_rows
        table = tables + sequence.to(tl.int64) * table_width
        source = (table, k_cache, v_cache, k_scales, v_scales, kv_head, num_kv_heads, window, scale)
        _, total, values = attend(
            queries, positions, source, lowest, end, BLOCK_SIZE, HEAD_DIM, ROW, SPAN, TILE, KEYS, BLOCK_DIM, SEPARATE
        )
        store_numbers(out + place, (values / total[:, None]).to(out.dtype.element_ty), exists, HEAD_DIM, BLOCK_DIM)


@triton.jit
def store_numbers(
    rows: tl.tensor, values: tl.tensor, exists: tl.tensor, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr
) -> None:
    """Store values [TILE, K] at the pointers `rows` [TILE], where a row exists."""
    numbers = tl.arange(0, BLOCK_DIM)
    tl.store(rows[:, None] + numbers[None, :], values, mask=exists[:, None] & (numbers < HEAD_DIM)[None, :])


@triton.jit
def splits_of(
    lowest: tl.tensor,
    end: tl.tensor,
    num_splits: tl.tensor,
    SPAN: tl.constexpr,
    KEYS: tl.constexpr,
    SEPARATE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the first position of split 0 and the length of each split of the positions lowest .. end - 1.

    Example: SPAN 256, KEYS 64, positions 0 .. 2,999 in 5 splits have length 640; separate spans have length 256.
    """
    first = lowest // SPAN * SPAN if SEPARATE else lowest // KEYS * KEYS
    length = tl.maximum(SPAN, tl.cdiv(tl.cdiv(end - first, num_splits), KEYS) * KEYS)
    return first, SPAN if SEPARATE else length


@triton.jit(do_not_specialize=["table_width", "num_splits"])
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
    SEPARATE: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Compute one split's partial of a sequence with one row, for one KV head."""
    wait_for_inputs(EARLY)
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row = tl.load(query_start + sequence)
    end = tl.load(context_len + sequence)
    lowest = tl.maximum(end - window, 0)
    first, length = splits_of(lowest, end, num_splits, SPAN, KEYS, SEPARATE)
    begin = first + split * length
    if (tl.load(query_start + sequence + 1) - first_row == 1) & (begin < end):
        queries, _, _, exists = load_queries(
            q, first_row, 1, kv_head, num_heads, PER_KV_HEAD, HEAD_DIM, TILE, BLOCK_DIM
        )
        table = tables + sequence.to(tl.int64) * table_width
        source = (table, k_cache, v_cache, k_scales, v_scales, kv_head, num_kv_heads, window, scale)
        positions = tl.where(exists, end - 1, -1)
        begin, stop = tl.maximum(begin, lowest // KEYS * KEYS), tl.minimum(begin + length, end)
        best, total, values = attend_span(
            queries, positions, source, lowest, begin, stop, BLOCK_SIZE, HEAD_DIM, ROW, TILE, KEYS, BLOCK_DIM
        )
        head = kv_head * PER_KV_HEAD + tl.arange(0, TILE)
        place = (sequence.to(tl.int64) * num_splits + split) * num_heads + head
        store_numbers(partial_values + place * HEAD_DIM, values, exists, HEAD_DIM, BLOCK_DIM)
        tl.store(partial_sums + place * 2, best, mask=exists)
        tl.store(partial_sums + place * 2 + 1, total, mask=exists)


@triton.jit(do_not_specialize=["num_splits"])
def merge_kernel(
    partial_values: tl.tensor,
    partial_sums: tl.tensor,
    out: tl.tensor,
    query_start: tl.tensor,
    context_len: tl.tensor,
    num_heads: tl.tensor,
    window: tl.tensor,
    num_splits: tl.tensor,
    HEAD_DIM: tl.constexpr,
    SPAN: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    SEPARATE: tl.constexpr,
    GROUP: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Merge the partials of one head of a sequence with one row, GROUP at a time, in ascending order."""
    wait_for_inputs(EARLY)
    sequence, head = tl.program_id(0), tl.program_id(1)
    row = tl.load(query_start + sequence)
    if tl.load(query_start + sequence + 1) - row == 1:
        numbers = tl.arange(0, BLOCK_DIM)
        is_number = numbers < HEAD_DIM
        end = tl.load(context_len + sequence)
        first, length = splits_of(tl.maximum(end - window, 0), end, num_splits, SPAN, KEYS, SEPARATE)
        used = tl.cdiv(end - first, length)
        best, total, values = empty_partial(1, BLOCK_DIM)
        for start in range(0, used, GROUP):
            split = start + tl.arange(0, GROUP)
            inside = split < used
            place = (sequence.to(tl.int64) * num_splits + split) * num_heads + head
            bests = tl.load(partial_sums + place * 2, mask=inside, other=float("-inf"))
            totals = tl.load(partial_sums + place * 2 + 1, mask=inside, other=0.0)
            mask = inside[:, None] & is_number[None, :]
            parts = tl.load(partial_values + place[:, None] * HEAD_DIM + numbers[None, :], mask=mask, other=0.0)
            maximum = tl.maximum(best, tl.max(bests, 0))
            reference = tl.where(maximum == float("-inf"), 0.0, maximum)
            factor, factors = tl.exp2(best - reference), tl.exp2(bests - reference)
            values = values * factor[:, None] + tl.sum(parts * factors[:, None], 0)[None, :]
            total = total * factor + tl.sum(totals * factors, 0)
            best = maximum
        target = out + (row.to(tl.int64) * num_heads + head) * HEAD_DIM + numbers[None, :]
        tl.store(target, (values / total[:, None]).to(out.dtype.element_ty), mask=is_number[None, :])
