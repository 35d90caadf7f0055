"""Matrices in the layout of the Triton kernels: in the compute dtype, or in 8 bits with one scale per output.

int8 is defined in model/ops/quantization.py. fp8 is e4m3 (Micikevicius et al. 2022) with scale = max |w| / 448. The
kernels widen it on any GPU by shifting its bits into a float16, which is too small by 2^8; the scale corrects this.
Shape letters as in model/ops/interface.py.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.ops.quantization import quantize_rows

WeightFormat = Literal["plain", "int8", "fp8"]
FP8_MAX = 448.0
FP8_SHIFT = 256.0  # exponent bias 7 in e4m3, 15 in float16: the same bits give a number smaller by 2^8


@dataclass(frozen=True)
class TritonMatrix:
    """Packed matrix [O, D], or [E, O, D] with one per expert."""

    values: Tensor  # [..., O, D] in the compute dtype, int8, or the bits of e4m3 as uint8
    scale: Tensor  # [..., O] float32; empty for plain matrices, and not read
    format: WeightFormat


def empty_matrix(shape: tuple[int, ...], like: Tensor, weight_format: WeightFormat) -> TritonMatrix:
    """Allocate a matrix on the device of `like`; fill it with `store`."""
    dtype = {"plain": like.dtype, "int8": torch.int8, "fp8": torch.uint8}[weight_format]
    num_scales = 0 if weight_format == "plain" else 1
    values = torch.empty(shape, dtype=dtype, device=like.device)
    scale = torch.empty([*shape[:-1]] if num_scales else [0], dtype=torch.float32, device=like.device)
    return TritonMatrix(values, scale, weight_format)


def pack(weight: Tensor, weight_format: WeightFormat) -> TritonMatrix:
    """Pack one matrix [O, D]; a plain one is not copied."""
    if weight_format == "plain":
        return TritonMatrix(weight.contiguous(), torch.empty(0, dtype=torch.float32, device=weight.device), "plain")
    matrix = empty_matrix(tuple(weight.shape), weight, weight_format)
    store(weight, matrix, slice(0, len(weight)))
    return matrix


def store(weight: Tensor, matrix: TritonMatrix, outputs: slice, expert: int | None = None) -> None:
    """Write weight [O', D] to rows `outputs` of the matrix or of one expert, quantized to the matrix's format."""
    at = outputs if expert is None else (expert, outputs)
    if matrix.format == "plain":
        matrix.values[at] = weight
        return
    values, scale = quantize(weight, matrix.format)
    matrix.values[at] = values
    matrix.scale[at] = scale


def quantize(weight: Tensor, weight_format: WeightFormat) -> tuple[Tensor, Tensor]:
    """Quantize [O, D] to int8 or the bits of e4m3; also return the factors [O] for the kernels' sums."""
    if weight_format == "int8":
        values, scale = quantize_rows(weight)
        return values, scale[:, 0]
    largest = weight.abs().amax(-1, keepdim=True).float()  # [O, 1]
    scale = torch.where(largest > 0, largest / FP8_MAX, 1.0)
    values = (weight.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return values.view(torch.uint8), scale[:, 0] * FP8_SHIFT


def dequantize(matrix: TritonMatrix) -> Tensor:
    """Return the dequantized weights, float32 [..., O, D]: the definition of both 8-bit formats."""
    if matrix.format == "plain":
        return matrix.values.float()
    if matrix.format == "int8":
        return matrix.values.float() * matrix.scale[..., None]
    return matrix.values.view(torch.float8_e4m3fn).float() * (matrix.scale / FP8_SHIFT)[..., None]
