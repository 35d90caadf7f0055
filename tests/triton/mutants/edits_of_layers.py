"""Bugs in norms and in the sums that they add."""

from tests.triton.mutants.mutant import Mutant

NORM, ROTARY, MOE, RANKS = "test_rms_norm.py", "test_rotary.py", "test_moe.py", "test_ranks.py"


def _norm(kernel: str, old: str, new: str) -> Mutant:
    return Mutant(kernel, "rms_norm", old, new, (NORM,))


def _sum(old: str, new: str, *tests: str) -> Mutant:
    return Mutant("load_pending", "pending_sum", old, new, tests or (NORM,))


def _whole_sum(old: str, new: str) -> Mutant:
    return Mutant("sum_kernel", "pending_sum", old, new, (RANKS,))


LAYERS = (
    _norm("rms_norm_kernel", "tl.sum(wide * wide) / dim + eps", "tl.sum(wide * wide) / dim"),
    _norm("rms_norm_kernel", "tl.load(weight + columns, mask=inside, other=0.0)", "tl.load(weight + 0 * columns)"),
    _norm("rms_norm_kernel", "start = tl.program_id(0).to(tl.int64) * dim", "start = tl.program_id(0).to(tl.int64)"),
    _norm(
        "rms_norm_kernel",
        "inside = columns < dim\n    value = tl.load(x + start",
        "inside = columns <= dim\n    value = tl.load(x + start",
    ),
    _norm("rms_norm_kernel", "columns, inside), mask=inside)", "columns, inside))"),
    _norm(
        "add_norm_kernel",
        "inside = columns < dim\n    value = tl.load(x + row",
        "inside = columns <= dim\n    value = tl.load(x + row",
    ),
    _norm("add_norm_kernel", "value += load_pending(", "value -= load_pending("),
    _norm(
        "add_norm_kernel",
        "tl.store(total + row * dim + columns, value, mask=inside)",
        "tl.store(total + row * dim + columns, value)",
    ),
    _norm(
        "add_norm_kernel",
        "tl.store(normed + row * dim + columns, normalized, mask=inside)",
        "tl.store(normed + row * dim + columns, normalized)",
    ),
    _norm("add_norm_kernel", "normalized = normalize(value,", "normalized = normalize(2.0 * value,"),
    _whole_sum("columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)", "columns = tl.arange(0, BLOCK)"),
    _whole_sum("inside = columns < num_columns", "inside = columns <= num_columns"),
    _whole_sum("columns, value, mask=inside)", "columns, value)"),
    _whole_sum("total + row * num_columns + columns", "total + columns"),
    _sum("taken = tl.load(expert_ids + pair) >= 0", "taken = tl.load(expert_ids + pair) > 0"),
    _sum("pair = row * max_k + choice", "pair = row + choice"),
    _sum("for choice in range(max_k):", "for choice in range(max_k - 1, -1, -1):"),
    _sum("for split in range(num_splits):", "for split in range(num_splits - 1, -1, -1):"),
    _sum("for split in range(num_splits):", "for split in range(num_splits - 1, -1, -1):", ROTARY),
    _sum("place = (split * num_rows + row) * num_columns", "place = (split + row) * num_columns"),
    _sum(
        "load_splits(pending, pair, columns, read, num_rows * max_k,",
        "load_splits(pending, pair, columns, read, num_rows,",
    ),
    _sum("tl.load(shares + pair) * output", "output"),
    _sum("return total.to(dtype)", "return total"),
    Mutant("add_norm_kernel", "rms_norm", "logits = gate_logits(normalized,", "logits = gate_logits(value,", (MOE,)),
)
