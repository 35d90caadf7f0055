"""Parts of a quantized matrix: which tensors an encoding needs, with which types and shapes.

Shape letters: O outputs, D inputs, G groups of inputs that share a scale.
"""

import math
from collections.abc import Callable

from model.checkpoint.errors import CheckpointError
from model.checkpoint.stored_tensor import PackedEncoding, PackedMatrix

PLAIN_DTYPES = ("F32", "BF16", "F16")
WORDS = ("I32", "U32")
Expected = dict[str, tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]]  # part -> types, shapes

NEEDED: dict[str, tuple[str, ...]] = {
    "awq": ("qweight", "scales"),
    "gptq": ("qweight", "qzeros", "scales"),
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_shape"),
    "fp8": ("weight", "weight_scale"),
    "fp8-blocks": ("weight", "weight_scale_inv"),
    "int8": ("weight", "weight_scale"),
    "bitsandbytes": ("weight", "weight.absmax", "weight.quant_map"),
    "mlx": ("weight", "scales", "biases"),
}
# Needed if the encoding has zero points, else optional.
ZEROS = {"awq": "qzeros", "compressed-tensors": "weight_zero_point", "int8": "weight_zero_point"}
OPTIONAL: dict[str, tuple[str, ...]] = {
    "awq": ("bias", "qzeros"),
    "gptq": ("bias", "g_idx"),
    "compressed-tensors": ("weight_zero_point", "weight_g_idx"),
    "int8": ("weight_zero_point",),
    "bitsandbytes": (
        *("weight.nested_absmax", "weight.nested_quant_map"),
        *("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4"),
    ),
}
# Scales of activations, which smoe does not quantize in these formats.
IGNORED = ("input_scale", "act_scale", "output_scale", "input_zero_point", "input_scale_ub")
NESTED_BLOCK = 256  # scales that share a scale (bitsandbytes)


def needed_parts(encoding: PackedEncoding) -> tuple[str, ...]:
    """Return the names of the parts that every matrix of this encoding has."""
    zeros = (ZEROS[encoding.kind],) if encoding.kind in ZEROS and encoding.has_zeros else ()
    return NEEDED[encoding.kind] + zeros


def optional_parts(encoding: PackedEncoding) -> tuple[str, ...]:
    """Return the names of the parts that a matrix of this encoding may have."""
    return OPTIONAL.get(encoding.kind, ())


def is_ignored_part(part: str) -> bool:
    """Return whether a part does not change the weights."""
    return part in IGNORED


def num_groups(matrix: PackedMatrix) -> int:
    """Return the groups of inputs that share a scale. Raises CheckpointError if they are not equally large."""
    num_inputs, size = matrix.shape[1], matrix.encoding.group_size or matrix.shape[1]
    if num_inputs % size:
        raise CheckpointError(f"{matrix.file}: tensor {matrix.name} has {num_inputs} inputs, not a multiple of {size}")
    return num_inputs // size


def check_parts(matrix: PackedMatrix) -> None:
    """Raise CheckpointError unless all parts have the types and shapes that the matrix's shape implies."""
    _check_words(matrix)
    for part, (dtypes, shapes) in EXPECTED[matrix.encoding.kind](matrix).items():
        tensor = matrix.parts.get(part)
        if tensor is None:
            continue
        where = f"{tensor.file}: tensor {tensor.name}"
        if tensor.shape not in shapes:
            raise CheckpointError(
                f"{where} has shape {list(tensor.shape)}, but {matrix.encoding} requires {list(shapes[0])}"
            )
        if tensor.dtype not in dtypes:
            raise CheckpointError(f"{where} has dtype {tensor.dtype}; supported are {', '.join(dtypes)}")


def _check_words(matrix: PackedMatrix) -> None:
    """Raise CheckpointError unless codes and zero points fill their words of 32 bits."""
    count, kind = 32 // math.gcd(32, matrix.encoding.bits), matrix.encoding.kind
    has_packed_zeros = kind == "compressed-tensors" and "weight_zero_point" in matrix.parts
    has_output_words = kind in ("awq", "gptq") or (has_packed_zeros and not matrix.has_plain_zeros)
    has_input_words = kind in ("gptq", "compressed-tensors", "mlx")
    outputs, inputs = matrix.shape
    if (has_output_words and outputs % count) or (has_input_words and inputs % count):
        shape = list(matrix.shape)
        raise CheckpointError(f"{matrix.file}: tensor {matrix.name} has shape {shape}, not multiples of {count}")


def _awq(matrix: PackedMatrix) -> Expected:
    outputs, inputs, groups = *matrix.shape, num_groups(matrix)
    return {
        "qweight": (WORDS, ((inputs, outputs // 8),)),
        "qzeros": (WORDS, ((groups, outputs // 8),)),
        "scales": (PLAIN_DTYPES, ((groups, outputs),)),
        "bias": (PLAIN_DTYPES, ((outputs,),)),
    }


def _gptq(matrix: PackedMatrix) -> Expected:
    words = 32 // matrix.encoding.bits
    outputs, inputs, groups = *matrix.shape, num_groups(matrix)
    return {
        "qweight": (WORDS, ((inputs // words, outputs),)),
        "qzeros": (WORDS, ((groups, outputs // words),)),
        "scales": (PLAIN_DTYPES, ((groups, outputs),)),
        "g_idx": (("I32", "I64"), ((inputs,),)),
        "bias": (PLAIN_DTYPES, ((outputs,),)),
    }


def _compressed_tensors(matrix: PackedMatrix) -> Expected:
    words = 32 // matrix.encoding.bits
    outputs, inputs, groups = *matrix.shape, num_groups(matrix)
    return {
        "weight_packed": (WORDS, ((outputs, inputs // words),)),
        "weight_scale": (PLAIN_DTYPES, ((outputs, groups),)),
        "weight_zero_point": (
            (("I8",), ((outputs, groups),)) if matrix.has_plain_zeros else (WORDS, ((outputs // words, groups),))
        ),
        "weight_shape": (("I64", "I32"), ((2,),)),
        "weight_g_idx": (("I32", "I64"), ((inputs,),)),
    }


def _one_byte(matrix: PackedMatrix) -> Expected:
    dtype = "I8" if matrix.encoding.kind == "int8" else "F8_E4M3"
    of_outputs = (matrix.shape[0], 1), (matrix.shape[0],), (1,), (), (1, 1)
    return {
        "weight": ((dtype,), (matrix.shape,)),
        "weight_scale": (PLAIN_DTYPES, of_outputs),
        "weight_zero_point": (("I8",), of_outputs),
    }


def _fp8_blocks(matrix: PackedMatrix) -> Expected:
    sizes = matrix.encoding.block_rows, matrix.encoding.group_size
    blocks = tuple(math.ceil(length / size) for length, size in zip(matrix.shape, sizes, strict=True))
    return {"weight": (("F8_E4M3",), (matrix.shape,)), "weight_scale_inv": (PLAIN_DTYPES, (blocks,))}


def _bitsandbytes(matrix: PackedMatrix) -> Expected:
    num_weights, size = math.prod(matrix.shape), matrix.encoding.group_size
    if num_weights % size:
        raise CheckpointError(f"{matrix.file}: tensor {matrix.name} has {matrix.shape}, not a multiple of {size}")
    scales = num_weights // size
    is_nested = "weight.nested_absmax" in matrix.parts
    return {
        "weight": (("U8",), ((num_weights // 2, 1), (num_weights // 2,))),
        "weight.absmax": (("U8",) if is_nested else ("F32",), ((scales,),)),
        "weight.quant_map": (("F32",), ((16,),)),
        "weight.nested_absmax": (("F32",), ((math.ceil(scales / NESTED_BLOCK),),)),
        "weight.nested_quant_map": (("F32",), ((256,),)),
    }


def _mlx(matrix: PackedMatrix) -> Expected:
    outputs, inputs, groups = *matrix.shape, num_groups(matrix)
    return {
        "weight": (WORDS, ((outputs, inputs * matrix.encoding.bits // 32),)),
        "scales": (PLAIN_DTYPES, ((outputs, groups),)),
        "biases": (PLAIN_DTYPES, ((outputs, groups),)),
    }


EXPECTED: dict[str, Callable[[PackedMatrix], Expected]] = {
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _compressed_tensors,
    "fp8": _one_byte,
    "int8": _one_byte,
    "fp8-blocks": _fp8_blocks,
    "bitsandbytes": _bitsandbytes,
    "mlx": _mlx,
}
