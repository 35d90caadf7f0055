"""Bugs in paged attention, rotation and the KV cache."""

from tests.triton.mutants.mutant import Mutant

ATTENTION_TESTS, ROTARY, LARGE = "test_attention.py", "test_rotary.py", "test_large_tensors.py"


def _span(old: str, new: str, *tests: str) -> Mutant:
    return Mutant("attend_span", "attention/tile", old, new, tests or (ATTENTION_TESTS,))


def _queries(old: str, new: str) -> Mutant:
    return Mutant("load_queries", "attention/tile", old, new, (ATTENTION_TESTS,))


def _merge(old: str, new: str) -> Mutant:
    return Mutant("merge", "attention/tile", old, new, (ATTENTION_TESTS,))


def _kernel(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, "attention/kernels", old, new, (ATTENTION_TESTS,))


def _rotate(old: str, new: str) -> Mutant:
    return Mutant("rotate_kernel", "rotary", old, new, (ROTARY,))


def _cache(old: str, new: str, *tests: str) -> Mutant:
    return Mutant("number_offsets", "kv_blocks", old, new, tests or (ROTARY,))


ATTENTION = (
    _span("(keys >= lowest) & (keys < end)", "(keys >= lowest) & (keys <= end)"),
    _span("(keys >= lowest) & (keys < end)", "keys < end"),
    _span(
        "tl.load(table + keys // BLOCK_SIZE, mask=readable, other=0).to(tl.int64)",
        "tl.load(table + keys // BLOCK_SIZE, mask=readable, other=0)",
        LARGE,
    ),
    _span("tl.load(table + keys // BLOCK_SIZE,", "tl.load(table + keys // KEYS,"),
    _span("number_offsets(block, keys % BLOCK_SIZE,", "number_offsets(block, keys // BLOCK_SIZE,"),
    _span("scale_offsets(block, keys % BLOCK_SIZE,", "scale_offsets(block, keys // BLOCK_SIZE,"),
    _span("tl.load(v_scales + place", "tl.load(k_scales + place"),
    _span("(keys[None, :] <= positions[:, None])", "(keys[None, :] < positions[:, None])"),
    _span("(keys[None, :] > positions[:, None] - window)", "(keys[None, :] >= positions[:, None] - window)"),
    _span(
        'reference = tl.where(maximum == float("-inf"), 0.0, maximum)\n        weights',
        "reference = maximum\n        weights",
    ),
    _span("total = total * factor + tl.sum(weights, 1)", "total = total + tl.sum(weights, 1)"),
    _span("values = values * factor[:, None] + tl.dot", "values = values + tl.dot"),
    _span("k_mask = readable[None, :] & is_number[:, None]", "k_mask = readable[None, :]"),
    _span("v_mask = readable[:, None] & is_number[None, :]", "v_mask = readable[:, None]"),
    _span("v_mask = readable[:, None] & is_number[None, :]", "v_mask = is_number[None, :]"),
    _queries("exists = row < num_rows", "exists = row >= 0"),
    _queries("exists = row < num_rows", "exists = row <= num_rows"),
    _queries("row = index // PER_KV_HEAD", "row = index % PER_KV_HEAD"),
    _queries("head = kv_head * PER_KV_HEAD + index % PER_KV_HEAD", "head = kv_head + index % PER_KV_HEAD"),
    _queries("mask = exists[:, None] & (numbers < HEAD_DIM)[None, :]", "mask = exists[:, None]"),
    _merge("other_values * other_factor[:, None]", "other_values * factor[:, None]"),
    _merge("total * factor + other_total * other_factor", "total + other_total * other_factor"),
    _kernel("attend", "span * SPAN, first), tl.minimum(span * SPAN + SPAN, end)", "span * SPAN, first), end"),
    _kernel("chunk_kernel", "- end_row + first_row\n", "- end_row + start_row\n"),
    _kernel("chunk_kernel", "first_position - window + 1, 0)", "first_position - window + 2, 0)"),
    _kernel("chunk_kernel", "0), first_position + num_rows", "0), first_position + num_rows - 1"),
    _kernel(
        "chunk_kernel",
        "num_rows\n        table = tables + sequence.to(tl.int64) * table_width",
        "num_rows\n        table = tables + sequence.to(tl.int64) * num_heads",
    ),
    _kernel("chunk_kernel", "(end_row - start_row > 1) & (first_row < end_row)", "first_row < end_row"),
    _kernel("chunk_kernel", "mask=exists[:, None] & (numbers < HEAD_DIM)[None, :]", "mask=exists[:, None]"),
    _kernel(
        "chunk_kernel", "mask=exists[:, None] & (numbers < HEAD_DIM)[None, :]", "mask=(numbers < HEAD_DIM)[None, :]"
    ),
    _kernel("decode_kernel", "positions = tl.where(exists, end - 1, -1)", "positions = tl.where(exists, end, -1)"),
    _kernel("decode_kernel", "lowest = tl.maximum(end - window, 0)", "lowest = tl.maximum(end - window + 1, 0)"),
    _kernel("decode_kernel", "lowest // SPAN * SPAN if SEPARATE else", "lowest // KEYS * KEYS if SEPARATE else"),
    _kernel("decode_kernel", "tl.maximum(SPAN, tl.cdiv(tl.cdiv(end - first, num_splits), KEYS) * KEYS)", "SPAN"),
    _kernel("decode_kernel", "begin = first + split * length", "begin = first + split * SPAN"),
    _kernel("decode_kernel", "tl.minimum(begin + length, end)", "tl.minimum(begin + length - 1, end)"),
    _kernel(
        "decode_kernel", "head = kv_head * PER_KV_HEAD + tl.arange(0, TILE)", "head = kv_head + tl.arange(0, TILE)"
    ),
    _kernel(
        "decode_kernel",
        "tl.store(partial_sums + place * 2, best, mask=exists)",
        "tl.store(partial_sums + place * 2, best)",
    ),
    _kernel(
        "decode_kernel",
        "(sequence.to(tl.int64) * num_splits + split) * num_heads + head\n        store",
        "(sequence.to(tl.int64) + split) * num_heads + head\n        store",
    ),
    _kernel("merge_kernel", "used = tl.cdiv(end - first, length)", "used = (end - first) // length"),
    _kernel("merge_kernel", "inside = split < used", "inside = split <= used"),
    _kernel(
        "merge_kernel",
        "total = total * factor + tl.sum(totals * factors, 0)",
        "total = total + tl.sum(totals * factors, 0)",
    ),
    _kernel("merge_kernel", "values = values * factor[:, None] + tl.sum(parts", "values = values + tl.sum(parts"),
    _kernel("merge_kernel", "tl.sum(parts * factors[:, None], 0)", "tl.sum(parts, 0)"),
    _kernel("merge_kernel", "mask=is_number[None, :])", "mask=numbers[None, :] >= 0)"),
    _kernel(
        "merge_kernel", "(row.to(tl.int64) * num_heads + head) * HEAD_DIM", "(sequence * num_heads + head) * HEAD_DIM"
    ),
    _rotate(
        "(heads < total)[:, None] & (pairs < HALF)[None, :]", "(heads <= total)[:, None] & (pairs < HALF)[None, :]"
    ),
    _rotate(
        "(heads < total)[:, None] & (pairs < HALF)[None, :]", "(heads < total)[:, None] & (pairs <= HALF)[None, :]"
    ),
    _rotate("(a * cosine - b * sine)", "(a * cosine + b * sine)"),
    _rotate("tl.load(sines + row * HALF + pairs", "tl.load(sines + HALF + pairs"),
    _rotate("is_q = inside & (heads < num_heads)[:, None]", "is_q = inside & (heads <= num_heads)[:, None]"),
    _rotate("(k_heads >= 0) & (v_heads < 0)", "(k_heads >= 0) & (v_heads <= 0)"),
    _rotate("(k_heads >= 0) & (v_heads < 0)", "v_heads < 0"),
    _rotate("block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE", "block, offset = slot // BLOCK_SIZE, 0 * slot"),
    _rotate("tl.store(target + HALF, b, mask=mask)", "tl.store(target + HALF, a, mask=mask)"),
    _rotate("tl.div_rn(largest, 127.0)", "tl.div_rn(largest, 128.0)"),
    _rotate("poison = tl.sum(a * 0.0 + b * 0.0, 1)", "poison = tl.sum(a * 0.0, 1)"),
    _rotate("has_pairs = tl.max(mask.to(tl.int32), 1) != 0", "has_pairs = tl.max(mask.to(tl.int32), 1) >= 0"),
    _rotate("rounded = (numbers + 12582912.0) - 12582912.0", "rounded = numbers"),
    _cache(
        "return block * (BLOCK_SIZE * ROW) * num_kv_heads",
        "return block.to(tl.int32) * (BLOCK_SIZE * ROW) * num_kv_heads",
        LARGE,
    ),
    _cache(
        "block_start = block * (BLOCK_SIZE * ROW // 4)",
        "block_start = block.to(tl.int32) * (BLOCK_SIZE * ROW // 4)",
        LARGE,
    ),
    _cache("(offset * num_kv_heads + kv_head) * HEAD_DIM", "(offset + kv_head) * HEAD_DIM"),
    _cache("+ offset * num_kv_heads + kv_head", "+ offset + kv_head"),
)
