"""Matrices in the layout of the Triton kernels: in the compute dtype, or in 8 bits with one scale per output.

int8 is defined in model/ops/quantization.py. fp8 is e4m3 (Micikevicius et al. 2022) with scale = max |w| / 448.
Four 8-bit weights share an int32 word: word i of a block of 256 inputs holds inputs i, i + 64, i + 128 and i + 192, in
bytes 0 to 3. So byte j of 64 adjacent words meets 64 adjacent inputs (model/ops/triton/wide_weights.py). Rows are
padded with zeros to whole blocks. Shape letters as in model/ops/interface.py; W words of a row.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model.ops.quantization import quantize_rows

WeightFormat = Literal["plain", "int8", "fp8"]
FP8_MAX = 448.0
BLOCK_INPUTS = 256  # inputs of a block of words
BLOCK_WORDS = BLOCK_INPUTS // 4


@dataclass(frozen=True)
class TritonMatrix:
    """Packed matrix [O, D], or [E, O, D] with one per expert."""

    values: Tensor  # [..., O, D] in the compute dtype, or [..., O, W] int32
    scale: Tensor  # [..., O] float32; empty for plain matrices, and not read
    format: WeightFormat
    num_inputs: int  # D


def empty_matrix(shape: tuple[int, ...], like: Tensor, weight_format: WeightFormat) -> TritonMatrix:
    """Allocate a matrix of this shape on the device of `like`; fill it with `store`."""
    *rows, dim = shape
    if weight_format == "plain":
        values, scale = like.new_empty(shape), like.new_empty(0, dtype=torch.float32)
    else:
        num_words = -(-dim // BLOCK_INPUTS) * BLOCK_WORDS
        values = like.new_empty(*rows, num_words, dtype=torch.int32)
        scale = like.new_empty(rows, dtype=torch.float32)
    return TritonMatrix(values, scale, weight_format, dim)


def pack(weight: Tensor, weight_format: WeightFormat) -> TritonMatrix:
    """Pack one matrix [O, D]; a plain one is not copied."""
    if weight_format == "plain":
        return TritonMatrix(weight.contiguous(), weight.new_empty(0, dtype=torch.float32), "plain", weight.shape[1])
    matrix = empty_matrix(tuple(weight.shape), weight, weight_format)
    store(weight, matrix, slice(0, len(weight)))
    return matrix


def store(weight: Tensor, matrix: TritonMatrix, outputs: slice, expert: int | None = None) -> None:
    """Write weight [O', D] to rows `outputs` of the matrix or of one expert, quantized to the matrix's format."""
    at = outputs if expert is None else (expert, outputs)
    if matrix.format == "plain":
        matrix.values[at] = weight
        return
    numbers, scale = quantize(weight, matrix.format)
    matrix.values[at] = to_words(numbers)
    matrix.scale[at] = scale


def quantize(weight: Tensor, weight_format: WeightFormat) -> tuple[Tensor, Tensor]:
    """Quantize [O, D]: bytes uint8 [O, D] (two's complement, or the bits of e4m3) and scales [O] float32.

    The scale of a row with NaN or Inf is NaN or Inf, so that its outputs show it.
    """
    if weight_format == "int8":
        values, scale = quantize_rows(weight)
        return values.view(torch.uint8), scale[:, 0]
    largest = weight.abs().amax(-1, keepdim=True).float()  # [O, 1]
    scale = torch.where(largest == 0, 1.0, largest / FP8_MAX)
    values = (weight.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return values.view(torch.uint8), scale[:, 0]


def to_words(numbers: Tensor) -> Tensor:
    """Pack bytes: uint8 [O, D] -> int32 [O, W]. Example: D = 1 gives words [b0, 0, 0, ...] with b0 in byte 0."""
    padded = F.pad(numbers, (0, -numbers.shape[1] % BLOCK_INPUTS))
    planes = padded.view(len(numbers), -1, 4, BLOCK_WORDS)
    return planes.transpose(2, 3).contiguous().view(torch.int32).flatten(1)


def to_bytes(words: Tensor, num_inputs: int) -> Tensor:
    """Unpack words: int32 [..., W] -> uint8 [..., D]."""
    numbers = words.contiguous().view(torch.uint8)
    planes = numbers.view(*words.shape[:-1], -1, BLOCK_WORDS, 4).transpose(-1, -2)
    return planes.flatten(-3)[..., :num_inputs].contiguous()


def dequantize(matrix: TritonMatrix) -> Tensor:
    """Return the dequantized weights, float32 [..., O, D]: the definition of both 8-bit formats."""
    if matrix.format == "plain":
        return matrix.values.float()
    numbers = to_bytes(matrix.values, matrix.num_inputs)
    dtype = torch.int8 if matrix.format == "int8" else torch.float8_e4m3fn
    return numbers.view(dtype).float() * matrix.scale[..., None]
