"""Compute the bytes of loaded weights by part of the network, from headers alone. Imports no torch."""

import math
from collections.abc import Mapping

from model.checkpoint.stored_tensor import StoredWeight
from model.checkpoint.tensor_names import EMBEDDING, HEAD, PARTS, part_of

QUANTIZED_PARTS = ("attention", "ffn", "experts", "head")  # the other parts stay in the compute dtype
GROUP = 32  # inputs that share an int4 scale


def weight_bytes(stored: Mapping[str, StoredWeight], element_bytes: int, quantization: str) -> dict[str, int]:
    """Return the bytes of each of PARTS. `element_bytes`: of the compute dtype; `quantization`: none, int8, int4, fp8.

    A tied head takes 0 bytes without quantization. With it, the head is a quantized copy of the embedding.
    """
    sizes = dict.fromkeys(PARTS, 0)
    for name, tensor in stored.items():
        part = part_of(name)
        sizes[part] += _tensor_bytes(tensor.shape, part, element_bytes, quantization)
    if HEAD not in stored and quantization != "none":
        sizes["head"] = _tensor_bytes(stored[EMBEDDING].shape, "head", element_bytes, quantization)
    return sizes


def _tensor_bytes(shape: tuple[int, ...], part: str, element_bytes: int, quantization: str) -> int:
    """Return the bytes of one tensor.

    int8 and fp8: 1 byte per weight, a float32 scale per output. int4: 16 bytes and a bfloat16 scale per 32 weights.
    """
    outputs, inputs = math.prod(shape[:-1]), shape[-1]
    if part not in QUANTIZED_PARTS or quantization == "none":
        return outputs * inputs * element_bytes
    if quantization in ("int8", "fp8"):
        return outputs * (inputs + 4)
    return outputs * math.ceil(inputs / GROUP) * (GROUP // 2 + 2)
