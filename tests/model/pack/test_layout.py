"""The bytes of packed matrices are those that packs on disks have, on every instruction set.

If this test fails because the native library packs differently on purpose: raise the number of the quantization in
LAYOUTS of model/checkpoint/pack/header.py, so that older packs are refused, and write the new sums here.
"""

import hashlib

import pytest
import torch
from torch import Tensor

from model.checkpoint.pack.header import LAYOUTS
from model.ops.interface import FfnWeights
from model.ops.quantization import Quantization
from model.ops.weights import BLOCK_SIZES, BlockMatrix
from tests.support.kernels.native_cases import ISAS, native

OUTPUTS, INPUTS = 40, 256  # the second panel is not full
SUMS = {
    "float32": "5586991128e5d341",
    "bfloat16": "5f39b9f76ee88ae2",
    "lossless": "ac0b8eedc00d5de2",
    "int8": "a189756a62708caa",
    "int4": "fb46218b85c7326c",
    "Q4_0": "518cb0cda5b80379",
    "Q4_1": "c3a358ca1a69153d",
    "Q5_0": "8d65db132088acb0",
    "Q5_1": "bc14b844ad92463d",
    "Q8_0": "e9e143944fd2b40e",
    "Q4_K": "48e5dc61a340217d",
    "Q5_K": "89239bc8d2489d38",
    "Q6_K": "dc919f058f12b89d",
    "INT4_G32": "432bbbae618a1189",
    "INT4_G64": "6aa89856aca571ea",
    "INT4_G128": "27bc48157b76ea73",
    "Q2_K": "3738428b229d6ac6",
    "Q3_K": "0b1d7864ea24c57d",
    "IQ4_NL": "518cb0cda5b80379",
    "IQ4_XS": "28b79cfd553ccd94",
    "INT8_G32": "c8924ebe53cd239e",
    "INT8_G64": "91472eea9f1117e6",
    "INT8_G128": "77dafb4e2ebcd4f8",
    "AFFINE4_G32": "e4a1cd7daee41475",
    "AFFINE4_G64": "61b5dbe48a80a96b",
    "AFFINE4_G128": "84de90e002946889",
    "AFFINE8_G32": "afcf26fe3bef243d",
    "AFFINE8_G64": "338e74d5789fbb5f",
    "AFFINE8_G128": "ad78e7c09a48cf48",
    "IQ3_S": "77e8aa5ce3a05a6a",
    "IQ3_XXS": "82962141859654d6",
    "IQ2_S": "35a5e2891d6d60c5",
    "IQ2_XS": "1cef4d13e8ef4b79",
    "IQ2_XXS": "7eb0b334a700b72b",
    "expert": "d6e61d0c8ac94f62",
}


def weights(num_outputs: int = OUTPUTS) -> Tensor:
    """Return numbers that every quantization rounds in the same way."""
    count = torch.arange(num_outputs * INPUTS) * 37 % 255 - 127
    return (count.float() / 128).view(num_outputs, INPUTS)


def blocks(name: str) -> BlockMatrix:
    """Return blocks of any bytes."""
    numbers, size = BLOCK_SIZES[name]
    count = OUTPUTS * (INPUTS // numbers) * size
    return BlockMatrix(name, (torch.arange(count) * 31 % 251).to(torch.uint8).view(OUTPUTS, -1))


def digest(*tensors: Tensor) -> str:
    content = b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(content).hexdigest()[:16]


def found(isa: str) -> dict[str, str]:
    """Return a sum of the packed bytes of every format."""
    plain: list[tuple[str, Quantization, torch.dtype]] = [
        ("float32", "none", torch.float32),
        ("bfloat16", "none", torch.bfloat16),
        ("lossless", "lossless", torch.bfloat16),
        ("int8", "int8", torch.float32),
        ("int4", "int4", torch.float32),
    ]
    sums = {}
    for name, quantization, dtype in plain:
        ops = native(isa, quantization=quantization)
        sums[name] = digest(*(matrix.panels for matrix in ops.pack_linear(weights().to(dtype)).matrices))
    ops = native(isa)
    for name in BLOCK_SIZES:
        sums[name] = digest(*(matrix.panels for matrix in ops.pack_linear(blocks(name)).matrices))
    square = weights(INPUTS)
    experts = ops.pack_ffn(FfnWeights(square, square * 0.5, square.T.contiguous()))
    return sums | {"expert": digest(experts.w13, experts.w2)}


@pytest.mark.parametrize("isa", ISAS)
def test_packed_bytes_are_those_of_the_layouts_number(isa: str) -> None:
    assert LAYOUTS == {"none": 1, "lossless": 1, "int8": 1, "int4": 2}
    assert found(isa) == SUMS
