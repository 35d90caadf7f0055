"""Run a few PTX instructions on numbers, to check inline assembly without a GPU. Semantics: PTX ISA, chapter 9.7."""

import re

import numpy as np
import torch
from numpy.typing import NDArray

Words = NDArray[np.uint32]


def run(text: str, inputs: dict[str, Words], outputs: list[str]) -> list[Words]:
    """Run a block of instructions on arrays of 32-bit registers and return the output registers."""
    registers = dict(inputs)
    for line in re.findall(r"^\s*([a-z][a-z0-9]*(?:\.[a-z0-9]+)+ [^;]*);", text, re.MULTILINE):
        name, _, operands = line.partition(" ")
        target, *sources = (operand.strip() for operand in operands.split(","))
        values = [_value(source, registers) for source in sources]
        registers[target] = INSTRUCTIONS[name](*values)
    return [registers[name] for name in outputs]


def _value(source: str, registers: dict[str, Words]) -> Words:
    return np.uint32(int(source, 0)) if source[0].isdigit() else registers[source]  # type: ignore[return-value]


def _mov(a: Words) -> Words:
    return np.asarray(a, dtype=np.uint32)


def _prmt(a: Words, b: Words, selector: Words) -> Words:
    """Byte i of the result is byte `selector nibble i` of b:a."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros_like(a)
    for index in range(4):
        nibble = int(selector) >> 4 * index & 15
        assert nibble < 8, "sign replication is not needed here"
        result |= ((both >> np.uint64(8 * nibble)) & np.uint64(255)).astype(np.uint32) << np.uint32(8 * index)
    return result


def _lop3(a: Words, b: Words, c: Words, table: Words) -> Words:
    """Bit (4 a + 2 b + c) of the table for each bit of a, b and c."""
    result = np.zeros_like(a)
    for index in range(8):
        if int(table) >> index & 1:
            terms = [x if index & bit else ~x for x, bit in ((a, 4), (b, 2), (c, 1))]
            result |= terms[0] & terms[1] & terms[2]
    return result


def _fma_bf16x2(a: Words, b: Words, c: Words) -> Words:
    """Multiply and add both halves as bfloat16, rounded once."""
    halves = [[_bfloat16(x, shift) for x in np.broadcast_arrays(a, b, c)] for shift in (0, 16)]
    rounded = [(x.double() * y.double() + z.double()).bfloat16() for x, y, z in halves]
    low, high = (half.view(torch.int16).numpy().view(np.uint16).astype(np.uint32) for half in rounded)
    return low | high << np.uint32(16)


def _bfloat16(words: Words, shift: int) -> torch.Tensor:
    bits = np.ascontiguousarray(words >> np.uint32(shift)).astype(np.uint16)
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


INSTRUCTIONS = {
    "mov.b32": _mov,
    "prmt.b32": _prmt,
    "shr.u32": lambda a, b: a >> b,
    "and.b32": lambda a, b: a & b,
    "lop3.b32": _lop3,
    "fma.rn.bf16x2": _fma_bf16x2,
}
