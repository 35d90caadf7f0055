"""The inline assembly that widens 8-bit weights gives every code's number, in every byte of both words."""

import numpy as np
import pytest
import torch

from model.ops.triton.wide_weights import FP8_ASM, INT8_ASM
from tests.triton_compiled.ptx import run

CODES = torch.arange(256, dtype=torch.int32).to(torch.uint8)
NUMBERS = {"fp8": CODES.view(torch.float8_e4m3fn), "int8": CODES.view(torch.int8)}


@pytest.mark.parametrize("weight_format", ["fp8", "int8"])
@pytest.mark.parametrize("byte", range(4))
@pytest.mark.parametrize("word", [0, 1])
def test_every_code_becomes_its_number(weight_format: str, byte: int, word: int) -> None:
    """The other seven bytes hold other codes, which must not show."""
    asm = {"fp8": FP8_ASM, "int8": INT8_ASM}[weight_format].value
    rng = np.random.default_rng(byte)
    words = [rng.integers(0, 2**32, 256, dtype=np.uint32) for _ in range(2)]
    words[word] &= ~np.uint32(255 << 8 * byte)
    words[word] |= np.arange(256, dtype=np.uint32) << np.uint32(8 * byte)
    planes = run(asm, {"$4": words[0], "$5": words[1]}, ["$0", "$1", "$2", "$3"])
    bits = (planes[byte] >> np.uint32(16 * word)).astype(np.uint16)
    ours = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float()
    expected = NUMBERS[weight_format].float()
    is_number = ~expected.isnan()  # e4m3 has two NaN; the packing makes none
    assert is_number.sum() >= 254
    assert torch.equal(ours[is_number], expected[is_number])
    assert torch.equal(ours.signbit()[is_number], expected.signbit()[is_number])  # -0 stays -0
