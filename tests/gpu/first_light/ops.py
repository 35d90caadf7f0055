"""Stages ops and sanitizer: each op at real or tiny shapes, on random numbers, against float64.

Freed memory is filled with NaN before each case, so that an output that is not written shows.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from model.ops.interface import FfnWeights, RoutingRequest
from model.ops.reference.kv_int8 import as_cached, as_numbers
from model.ops.reference.ops import ReferenceOps
from model.ops.triton.packed_weights import WeightFormat, dequantize
from tests.gpu.first_light.result import Options, Row
from tests.gpu.first_light.shapes import Setting, setting_of
from tests.support.kernels import float64_oracle as oracle
from tests.support.kernels.attention_cases import Heads, Part, attend, random_positions
from tests.support.kernels.sampling_cases import random_logits, random_rows, sampled_by
from tests.triton.cases import in_blocks, summed

FORMATS: tuple[WeightFormat, ...] = ("plain", "int8", "fp8")
LIMIT = 0.02  # relative error of a row; bfloat16 rounds to 0.004
POISON_BYTES = 1 << 30


def check_ops(options: Options) -> list[Row]:
    """Check each op; a row has the largest relative error of its rows."""
    torch.set_default_device(options.device)
    torch.manual_seed(0)
    setting = setting_of(options)
    return [row for cases in (_norm, _linear, _moe, _attention, _sampling) for row in cases(setting)]


def check_tiny_ops(options: Options) -> list[Row]:
    """Check each op at tiny shapes: compute-sanitizer is slow."""
    return check_ops(replace(options, tiny=True))


def _row(case: str, ours: Tensor, exact: Tensor) -> Row:
    error = (ours.double() - exact.double()).flatten(1).norm(dim=1) / exact.double().flatten(1).norm(dim=1).clamp(1e-9)
    worst = float(error.max())
    return {"case": case, "error": worst, "ok": worst < LIMIT}  # false for NaN


def _poison(setting: Setting) -> None:
    """Leave NaN in the memory that the next tensors get."""
    num_numbers = (POISON_BYTES if setting.device.type == "cuda" else 1 << 16) // 4
    for share in (1, 4, 64, 1024):
        torch.full((num_numbers // share,), float("nan"), device=setting.device)


def _norm(setting: Setting) -> Iterator[Row]:
    ops, dim = setting.ops(), setting.config.dim
    weight = torch.rand(dim).to(setting.dtype)
    for count in setting.rows:
        x = torch.randn(count, dim).to(setting.dtype)
        _poison(setting)
        yield _row(f"rms_norm {count}", ops.rms_norm(x, weight, 1e-5), oracle.rms_norm(x, weight, 1e-5))


def _linear(setting: Setting) -> Iterator[Row]:
    config = setting.config
    outputs = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    for weight_format in FORMATS:
        for deterministic in (False, True):
            ops = setting.ops(weight_format, deterministic)
            weight = ops.pack_linear(_random(outputs, config.dim, setting))
            for count in setting.rows:
                x = torch.randn(count, config.dim).to(setting.dtype)
                _poison(setting)
                exact = oracle.linear(x, dequantize(weight))
                yield _row(
                    f"linear {weight_format} {count} {_kind(deterministic)}", summed(ops.linear(x, weight), x), exact
                )


def _moe(setting: Setting) -> Iterator[Row]:
    config, generator = setting.config, random.Random(0)
    for weight_format in FORMATS:
        ops = setting.ops(weight_format)
        gate = _random(config.num_experts, config.dim, setting)
        packed = ops.pack_moe(gate, (_ffn(setting) for _ in range(config.num_experts)))
        for count in setting.rows:
            k = [generator.randint(1, 3) for _ in range(count)]
            ids = torch.full((count, max(k)), -7, dtype=torch.int32)
            request = RoutingRequest(torch.tensor(k, dtype=torch.int32), None, ids)
            x = torch.randn(count, config.dim).to(setting.dtype)
            _poison(setting)
            ours = summed(ops.moe(x, packed, request), x)
            experts = zip(packed.experts.w13.values, packed.experts.w2.values, strict=True)
            yield _row(f"moe {weight_format} {count}", ours, _exact_moe(x, gate, packed, k, len(list(experts))))


def _exact_moe(x: Tensor, gate: Tensor, packed: object, k: list[int], num_experts: int) -> Tensor:
    """Compute the mixture in float64, one dequantized expert at a time."""
    logits = oracle.linear(x, gate)
    last = torch.stack([row.sort(descending=True).values[count - 1] for row, count in zip(logits, k, strict=True)])
    share = logits.masked_fill(logits < last[:, None], float("-inf")).softmax(-1)
    total = torch.zeros(x.shape, dtype=torch.float64)
    for expert in range(num_experts):
        w13, w2 = (_expert(matrix, expert) for matrix in (packed.experts.w13, packed.experts.w2))  # type: ignore[attr-defined]
        total += share[:, expert, None] * oracle.ffn(x, FfnWeights(w13[::2], w13[1::2], w2))
    return total


def _expert(matrix: object, expert: int) -> Tensor:
    values, scale = matrix.values[expert], matrix.scale  # type: ignore[attr-defined]
    return dequantize(replace(matrix, values=values, scale=scale[expert] if len(scale) else scale))  # type: ignore[type-var]


def _attention(setting: Setting) -> Iterator[Row]:
    config = setting.config
    for cached in (setting.dtype, torch.int8):
        for window in (None, 100):
            heads = Heads(config.num_heads, config.num_kv_heads, config.head_dim, window)
            for deterministic in (False, True):
                ops = setting.ops(deterministic=deterministic)
                for context in setting.contexts:
                    sequence = random_positions(context, heads, setting.dtype, seed=context)
                    parts = [
                        Part(sequence, context - 1, 1),
                        Part(sequence, context // 2, min(33, context - context // 2)),
                    ]
                    _poison(setting)
                    outputs = attend(ops, heads, parts, kv_dtype=cached, in_blocks=in_blocks)
                    for part, ours in zip(parts, outputs, strict=True):
                        end = part.first + part.num_rows
                        k, v = (as_numbers(as_cached(t[:end], cached)) for t in (sequence.k, sequence.v))
                        exact = oracle.attention(sequence.q[part.first : end], k, v, part.first, window)
                        kind = f"{part.num_rows} of {end} window {window} {_kind(deterministic)}"
                        yield _row(f"attention {str(cached).removeprefix('torch.')} {kind}", ours, exact)


def _sampling(setting: Setting) -> Iterator[Row]:
    """Compare tokens with the reference backend's, which is the definition."""
    rng = random.Random(0)
    for trial in range(4):
        logits, rows = random_logits(rng, setting.config.vocab_size), random_rows(rng, setting.config.vocab_size)
        ours, _ = sampled_by(setting.ops(), logits, rows)
        theirs, _ = sampled_by(ReferenceOps(), logits, rows)
        is_equal = torch.equal(ours.token_ids, theirs.token_ids) and torch.equal(ours.status, theirs.status)
        yield {"case": f"sampling {trial}", "ok": is_equal}


def _random(outputs: int, inputs: int, setting: Setting) -> Tensor:
    return torch.randn(outputs, inputs).mul_(inputs**-0.5).to(setting.dtype)


def _ffn(setting: Setting) -> FfnWeights:
    dim, hidden = setting.config.dim, setting.config.hidden_dim
    return FfnWeights(_random(hidden, dim, setting), _random(hidden, dim, setting), _random(dim, hidden, setting))


def _kind(deterministic: bool) -> str:
    return "deterministic" if deterministic else "by load"
