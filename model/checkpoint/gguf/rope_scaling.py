"""Read how a GGUF file scales rotary angles: by a factor, by YaRN, and by a tensor with a divisor for each pair.

Followed is what llama.cpp computes for the architecture llama. No torch.
"""

import struct
from collections.abc import Sequence

from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf.fields import GgufFields
from model.checkpoint.gguf.file import GgufFile
from model.checkpoint.gguf.tensors import ROPE_DIVISORS, without_ones
from model.checkpoint.json_files import printable
from model.checkpoint.rope_scaling import (
    MAX_CONTEXT,
    MAX_DIVISOR,
    MAX_FACTOR,
    MIN_DIVISOR,
    MIN_FACTOR,
    RopeScaling,
    is_divisor,
    unless_ones,
)
from model.checkpoint.stored_tensor import StoredTensor
from model.checkpoint.yarn import FAST, SLOW, attention_scale, divisor, yarn_ramp

# Fields of YaRN that llama.cpp reads for other architectures alone, with the values that it has for this one.
FIXED = {
    "yarn_ext_factor": 1.0,
    "yarn_attn_factor": 1.0,
    "yarn_beta_fast": FAST,
    "yarn_beta_slow": SLOW,
    "yarn_log_multiplier": 0.0,
}


def gguf_rope_scaling(
    file: GgufFile, fields: GgufFields, head_dim: int, theta: float, warnings: list[str]
) -> RopeScaling:
    """Return the scaling of the rotary angles. Raises CheckpointError.

    A file of Llama 3.1 stores the divisors alone. Where it has a factor too, both apply, as in llama.cpp.
    """
    kind = _kind(fields)
    by_rule: Sequence[float] = (1.0,) * (head_dim // 2)
    if kind == "linear":
        by_rule = (_factor(fields),) * (head_dim // 2)
    elif kind == "yarn":
        by_rule = _yarn_divisors(fields, head_dim, theta)
        warnings += _ignored(fields)
    tensor = file.tensors.get(ROPE_DIVISORS)
    stored = (1.0,) * (head_dim // 2) if tensor is None else _stored_divisors(tensor, head_dim // 2)
    divisors = tuple(a * b for a, b in zip(by_rule, stored, strict=True))
    if not all(map(is_divisor, divisors)):
        raise fields.error(f"llama.rope.scaling.factor times {ROPE_DIVISORS} is not {MIN_DIVISOR:g} to {MAX_DIVISOR:g}")
    return RopeScaling(unless_ones(divisors), _attention_factor(fields, kind))


def _kind(fields: GgufFields) -> str:
    """Return none, linear or yarn. Without a type it is linear, as in llama.cpp."""
    kind = fields.text("rope.scaling.type")
    if kind not in (None, "none", "linear", "yarn"):
        raise fields.error(f"llama.rope.scaling.type is {printable(kind)}; supported are 'none', 'linear' and 'yarn'")
    return kind or "linear"


def _factor(fields: GgufFields) -> float:
    # The second name is that of files of 2023. 0 stands for no scaling.
    names = (name for name in ("rope.scaling.factor", "rope.scale_linear") if fields.get(name) not in (None, 0))
    name = next(names, None)
    return 1.0 if name is None else fields.positive_float(name, at_most=MAX_DIVISOR)


def _yarn_divisors(fields: GgufFields, head_dim: int, theta: float) -> list[float]:
    if theta <= 1:
        raise fields.error(f"YaRN needs a base of the rotary angles above 1, not {theta:g}")
    name = "rope.scaling.original_context_length"
    has_own = fields.get(name) not in (None, 0)
    first_context = fields.integer(name if has_own else "context_length", 1, MAX_CONTEXT)
    factor, ramp = _factor(fields), yarn_ramp(head_dim, theta, first_context)
    width = max(ramp.end - ramp.start, 1e-3)
    return [divisor(factor, ramp.slowed(pair, width)) for pair in range(head_dim // 2)]


def _attention_factor(fields: GgufFields, kind: str) -> float:
    """Return the factor of cosines and sines: the file's, whatever the type, times YaRN's own."""
    name = "rope.scaling.attn_factor"
    stored = 1.0 if fields.get(name) in (None, 0) else fields.positive_float(name, at_most=MAX_FACTOR)
    factor = stored * attention_scale(_factor(fields)) if kind == "yarn" else stored
    if not MIN_FACTOR <= factor <= MAX_FACTOR:
        raise fields.error(f"llama.{name} makes the attention factor {factor:g}, not {MIN_FACTOR:g} to {MAX_FACTOR:g}")
    return factor


def _ignored(fields: GgufFields) -> list[str]:
    names = (f"rope.scaling.{name}" for name, value in FIXED.items() if _is_other(fields, name, value))
    return [f"llama.{name} is {printable(fields.get(name))}: ignored, as llama.cpp ignores it" for name in names]


def _is_other(fields: GgufFields, name: str, value: float) -> bool:
    return fields.get(f"rope.scaling.{name}") not in (None, value)


def _stored_divisors(tensor: StoredTensor, num_pairs: int) -> tuple[float, ...]:
    where = f"{tensor.file}: tensor {tensor.name}"
    if tensor.dtype != "F32" or without_ones(tensor.shape) != (num_pairs,):
        raise CheckpointError(f"{where} is {tensor.dtype} {list(tensor.shape)}, not F32 [{num_pairs}]")
    try:
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            content = stream.read(tensor.num_bytes)
    except OSError as error:
        raise CheckpointError(f"{tensor.file} cannot be read: {error.strerror}") from None
    if len(content) != 4 * num_pairs:
        raise CheckpointError(f"{where}: the file ends within it")
    divisors = struct.unpack(f"<{num_pairs}f", content)
    if not all(map(is_divisor, divisors)):
        raise CheckpointError(f"{where} contains a number that is not {MIN_DIVISOR:g} to {MAX_DIVISOR:g}")
    return divisors
