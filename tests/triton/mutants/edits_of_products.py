"""Bugs in matrix products: linear layers, experts, widened weights, and the routing that feeds them."""

from tests.triton.mutants.mutant import Mutant

LINEAR, MOE, LARGE, ROUTING = "test_linear.py", "test_moe.py", "test_large_tensors.py", "test_topk_routing.py"


def _tile(old: str, new: str, *tests: str) -> Mutant:
    return Mutant("multiply_tile", "gemm_tiles", old, new, tests or (LINEAR,))


def _linear(old: str, new: str) -> Mutant:
    return Mutant("linear_kernel", "linear", old, new, (LINEAR,))


def _gate_up(old: str, new: str, *tests: str) -> Mutant:
    return Mutant("gate_up_kernel", "moe", old, new, tests or (MOE,))


def _down(old: str, new: str, *tests: str) -> Mutant:
    return Mutant("down_kernel", "moe", old, new, tests or (MOE,))


def _gate(old: str, new: str) -> Mutant:
    return Mutant("gate_kernel", "topk_routing", old, new, (MOE,))


def _align(old: str, new: str) -> Mutant:
    return Mutant("align_kernel", "topk_routing", old, new, (ROUTING, MOE))


def _widen(old: str, new: str) -> Mutant:
    return Mutant("widen", "wide_weights", old, new, (LINEAR,))


def _asm(old: str, new: str) -> Mutant:
    return Mutant("widen in assembly", "wide_weights", old, new, ("../triton_compiled/test_wide_weights.py",))


PRODUCTS = (
    _tile("per_split = tl.cdiv(tl.cdiv(dim, INPUTS), num_splits)", "per_split = tl.cdiv(dim, INPUTS) // num_splits"),
    _tile("first_block = split * per_split", "first_block = split"),
    _tile(
        "for block in range(first_block, end_block):\n            k = block * INPUTS + inputs",
        "for block in range(end_block - 1, first_block - 1, -1):\n            k = block * INPUTS + inputs",
    ),
    _tile(
        "for block in range(first_block, end_block):\n            words",
        "for block in range(end_block - 1, first_block - 1, -1):\n            words",
    ),
    _tile("for plane in tl.static_range(4):", "for plane in tl.static_range(3):"),
    _tile("for plane in tl.static_range(4):", "for plane in tl.static_range(3, -1, -1):"),
    _tile("k = block * INPUTS + plane * (INPUTS // 4) + place", "k = block * INPUTS + plane * (INPUTS // 2) + place"),
    _tile("tl.dot(weights[plane], x, total", "tl.dot(weights[3 - plane], x, total"),
    _tile("w_rows = w + outputs * dim", "w_rows = w + outputs.to(tl.int32) * dim", LARGE),
    _tile(
        "w_rows = w + outputs * (tl.cdiv(dim, INPUTS) * (INPUTS // 4))",
        "w_rows = w + outputs.to(tl.int32) * (tl.cdiv(dim, INPUTS) * (INPUTS // 4))",
        LARGE,
    ),
    _tile(
        "weights = load_inputs(w_rows[:, None] + k[None, :], (k < dim)[None, :], EVEN)",
        "weights = load_inputs(w_rows[:, None] + k[None, :], (k <= dim)[None, :], EVEN)",
    ),
    _tile(
        "(k < dim)[:, None], EVEN)\n            weights",
        "(k <= dim)[:, None], EVEN)\n            weights",
    ),
    _tile(
        "(k < dim)[:, None], EVEN)\n                total",
        "(k <= dim)[:, None], EVEN)\n                total",
    ),
    _tile("tl.load(pointers, mask=inside, other=0.0)", "tl.load(pointers, mask=inside, other=1.0)"),
    _linear("% row_tiles) * ROWS + tl.arange(0, ROWS)", "% row_tiles) * OUTPUTS + tl.arange(0, ROWS)"),
    _linear("// row_tiles) * OUTPUTS", "// row_tiles) * ROWS"),
    _linear("rows < num_rows, outputs < num_outputs", "rows <= num_rows, outputs < num_outputs"),
    _linear("rows < num_rows, outputs < num_outputs", "rows < num_rows, outputs <= num_outputs"),
    _linear("mask=output_mask[:, None] & row_mask[None, :]", "mask=output_mask[:, None]"),
    _linear("mask=output_mask[:, None] & row_mask[None, :]", "mask=row_mask[None, :]"),
    _linear("(split.to(tl.int64) * num_rows + rows[None, :])", "(split.to(tl.int64) + rows[None, :])"),
    _linear(
        "tl.load(scales + outputs, mask=output_mask, other=0.0)", "tl.load(scales + 0 * outputs, mask=output_mask)"
    ),
    _linear("EVEN=dim % tiling.inputs == 0", "EVEN=True"),
    _gate_up("tl.where(row_mask, pairs // max_k, 0)", "tl.where(row_mask, pairs, 0)"),
    _gate_up("outputs < 2 * hidden_dim", "outputs < hidden_dim"),
    _gate_up("w_rows = expert * 2 * hidden_dim", "w_rows = expert * hidden_dim"),
    _gate_up("tl.load(scales + w_rows)[:, None]\n        gate", "tl.load(scales + 0 * w_rows)[:, None]\n        gate"),
    _gate_up("gate, up = total", "up, gate = total"),
    _gate_up("gate / (1.0 + tl.exp(-gate)) * up", "gate / (1.0 + tl.exp(gate)) * up"),
    _gate_up("mask = (numbers < hidden_dim)[:, None] & row_mask[None, :]", "mask = (numbers < hidden_dim)[:, None]"),
    _gate_up("mask = (numbers < hidden_dim)[:, None] & row_mask[None, :]", "mask = row_mask[None, :]"),
    _gate_up("multiply_tile(x_rows, w13, w_rows,", "multiply_tile(x_rows, w13, w_rows.to(tl.int32),", LARGE),
    _down("return inside // size, group", "return inside // GROUP, group"),
    _down("size = tl.minimum(num_blocks - group * GROUP, GROUP)", "size = GROUP"),
    _down("group * GROUP + inside % size", "inside % size"),
    _down("tl.where(row_mask, pairs, 0) * hidden_dim", "tl.where(row_mask, pairs // 2, 0) * hidden_dim"),
    _down("w_rows = expert * dim", "w_rows = expert * hidden_dim"),
    _down("tl.load(scales + w_rows)[:, None]\n        target", "tl.load(scales + 0 * w_rows)[:, None]\n        target"),
    _down("(split.to(tl.int64) * num_pairs + pairs[None, :])", "(split.to(tl.int64) + pairs[None, :])"),
    _down("mask=output_mask[:, None] & row_mask[None, :]", "mask=output_mask[:, None]"),
    _down("mask=output_mask[:, None] & row_mask[None, :]", "mask=row_mask[None, :]"),
    _down("multiply_tile(h_rows, w2, w_rows,", "multiply_tile(h_rows, w2, w_rows.to(tl.int32),", LARGE),
    _gate("group = first + tl.arange(0, GROUP)", "group = tl.arange(0, GROUP)"),
    _gate("gate + group[:, None] * dim", "gate + group[:, None] * num_experts"),
    _gate("mask = (group < num_experts)[:, None] & inside[None, :]", "mask = inside[None, :]"),
    _gate("exists = experts < num_experts", "exists = experts <= num_experts"),
    _gate('ranked = tl.where(logits == logits, logits, float("-inf"))', "ranked = logits"),
    _gate("allowed + row * num_experts + experts", "allowed + row + experts"),
    _gate(
        "expert = tl.min(tl.where(remaining & (ranked == best), experts, EXPERTS))",
        "expert = tl.max(tl.where(remaining & (ranked == best), experts, -1))",
    ),
    _gate("taken = (choice < count)", "taken = (choice <= count)"),
    _gate("remaining = remaining & (experts != expert)", "remaining = remaining & (experts > expert)"),
    _gate("choice_weights / tl.sum(choice_weights)", "choice_weights"),
    _gate("tl.store(expert_ids + target, ids, mask=choices < max_k)", "tl.store(expert_ids + target, ids)"),
    _gate("inside = inputs < dim", "inside = inputs <= dim"),
    _align("tiles = (counts + ROWS - 1) // ROWS", "tiles = counts // ROWS + 1"),
    _align("tl.where(experts < expert, tiles, 0)", "tl.where(experts <= expert, tiles, 0)"),
    _align("mask=start + pairs < num_pairs, other=-1)", "mask=start + pairs <= num_pairs, other=-1)"),
    _align("mask=(tile >= first_tile) & (tile < num_tiles)", "mask=(tile > first_tile) & (tile < num_tiles)"),
    _align("mask=(tile >= first_tile) & (tile < num_tiles)", "mask=tile >= first_tile"),
    _align("expert, mask=start + pairs < own_tiles)", "expert, mask=start + pairs <= own_tiles)"),
    _align("done + tl.cumsum(mine) - mine", "done + tl.cumsum(mine)"),
    _align("num_pairs, mask=padding < end)", "0, mask=padding < end)"),
    _align("num_pairs, mask=padding < end)", "num_pairs, mask=padding <= end)"),
    _widen("(words << (24 - 8 * INDEX)) >> 24", "(words >> (8 * INDEX)) & 0xFF"),
    _widen("(code & 0x80) << 8", "(code & 0x80) << 7"),
    _widen("(code & 0x7F) << 7", "(code & 0x3F) << 7"),
    _widen("widen_byte(words, 2, FORMAT)", "widen_byte(words, 1, FORMAT)"),
    _asm('("0x4000", "0x5010", "0x6020", "0x7030")', '("0x4000", "0x5010", "0x6030", "0x7030")'),
    _asm('("0x0400", "0x0501", "0x0602", "0x0703")', '("0x0400", "0x0501", "0x0602", "0x0700")'),
    _asm("and.b32 t, t, 0x07f007f0;", "and.b32 t, t, 0x07f007e0;"),
    _asm("mov.b32 z, 0x80008000;", "mov.b32 z, 0x00008000;"),
    _asm('"0x7b807b80"', '"0x7b007b80"'),
)
