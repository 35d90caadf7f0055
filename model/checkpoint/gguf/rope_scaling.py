"""Read how a GGUF file scales rotary angles: by a factor, and by a tensor with a divisor for each pair. No torch."""

import struct

from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf.fields import GgufFields
from model.checkpoint.gguf.file import GgufFile
from model.checkpoint.gguf.tensors import ROPE_DIVISORS, without_ones
from model.checkpoint.json_files import printable
from model.checkpoint.rope_scaling import MAX_DIVISOR, MIN_DIVISOR, is_divisor
from model.checkpoint.stored_tensor import StoredTensor


def gguf_rope_divisors(file: GgufFile, fields: GgufFields, head_dim: int) -> tuple[float, ...]:
    """Return the divisor of each rotary pair's frequency, [K/2]; () if angles are not scaled. Raises CheckpointError.

    A file of Llama 3.1 stores the divisors alone. Where it has a factor too, both apply, as in llama.cpp.
    """
    factor = _linear_factor(fields)
    tensor = file.tensors.get(ROPE_DIVISORS)
    stored = (1.0,) * (head_dim // 2) if tensor is None else _stored_divisors(tensor, head_dim // 2)
    divisors = tuple(factor * divisor for divisor in stored)
    if not all(map(is_divisor, divisors)):
        raise fields.error(f"llama.rope.scaling.factor times {ROPE_DIVISORS} is not {MIN_DIVISOR:g} to {MAX_DIVISOR:g}")
    return divisors if set(divisors) != {1.0} else ()


def _linear_factor(fields: GgufFields) -> float:
    """Return the factor of all pairs. Without a type it is linear, as in llama.cpp."""
    if fields.get("rope.scaling.attn_factor") not in (None, 0, 1):
        value = printable(fields.get("rope.scaling.attn_factor"))
        raise fields.error(f"llama.rope.scaling.attn_factor is {value}; scaled attention is not supported")
    kind = fields.text("rope.scaling.type")
    if kind == "none":
        return 1.0
    if kind not in (None, "linear"):
        raise fields.error(f"llama.rope.scaling.type is {printable(kind)}; supported are 'none' and 'linear'")
    # The second name is that of files of 2023. 0 stands for no scaling.
    names = (name for name in ("rope.scaling.factor", "rope.scale_linear") if fields.get(name) not in (None, 0))
    name = next(names, None)
    return 1.0 if name is None else fields.positive_float(name, at_most=MAX_DIVISOR)


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
