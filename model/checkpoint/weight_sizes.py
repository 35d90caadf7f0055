"""How many bytes weights take once they are loaded, by part of the network. From headers alone; free of torch."""

import math
from collections.abc import Mapping

from model.checkpoint.headers import StoredTensor
from model.checkpoint.tensor_names import EMBEDDING, HEAD, PARTS, part_of

QUANTIZED_PARTS = ("attention", "ffn", "experts", "head")  # the others stay in the dtype served
GROUP = 32  # of int4


def weight_bytes(stored: Mapping[str, StoredTensor], element_bytes: int, quantization: str) -> dict[str, int]:
    """Bytes of each of PARTS. `element_bytes`: of the dtype served; `quantization`: none, int8, int4 or fp8.

    A tied head has none of its own, unless weights are quantized: the embedding it shares is not.
    """
    sizes = dict.fromkeys(PARTS, 0)
    for name, tensor in stored.items():
        part = part_of(name)
        sizes[part] += _tensor_bytes(tensor.shape, part, element_bytes, quantization)
    if HEAD not in stored and quantization != "none":
        sizes["head"] = _tensor_bytes(stored[EMBEDDING].shape, "head", element_bytes, quantization)
    return sizes


def _tensor_bytes(shape: tuple[int, ...], part: str, element_bytes: int, quantization: str) -> int:
    """int8, fp8: a byte per number, a float32 scale per output. int4: of 32 numbers 16 bytes and a bfloat16 scale."""
    outputs, inputs = math.prod(shape[:-1]), shape[-1]
    if part not in QUANTIZED_PARTS or quantization == "none":
        return outputs * inputs * element_bytes
    if quantization in ("int8", "fp8"):
        return outputs * (inputs + 4)
    return outputs * math.ceil(inputs / GROUP) * (GROUP // 2 + 2)
