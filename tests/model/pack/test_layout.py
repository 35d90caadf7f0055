"""The bytes of packed matrices are those that packs on disks have, on every instruction set.

If this test fails because the native library packs differently on purpose: raise LAYOUT in
model/checkpoint/pack/header.py, so that older packs are refused, and write the new sums here.
"""

import hashlib

import pytest
import torch
from torch import Tensor

from model.checkpoint.pack.header import LAYOUT
from model.ops.interface import FfnWeights
from model.ops.quantization import Quantization
from model.ops.weights import BLOCK_SIZES, BlockMatrix
from tests.support.native_cases import ISAS, native

OUTPUTS, INPUTS = 40, 256  # the second panel is not full
SUMS: dict[str, str] = {}


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
    assert LAYOUT == 1
    assert found(isa) == SUMS
