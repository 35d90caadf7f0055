"""Matrices as the Triton kernels read them: in the compute dtype, or in 8 bits with one scale per output.

int8 is that of model/ops/quantization.py. fp8 holds e4m3 numbers (Micikevicius et al. 2022),
scale = max |w| / 448; the kernels widen its bits by shifting them into a float16, which is smaller by 2^8, on any card.
Shape letters as in model/ops/interface.py.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.ops.quantization import quantize_rows

WeightFormat = Literal["plain", "int8", "fp8"]
FP8_MAX = 448.0
FP8_SHIFT = 256.0  # e4m3 has exponent bias 7, float16 15: bits moved over as they are read 2^8 too small


@dataclass(frozen=True)
class TritonMatrix:
    """[..., O, D]: one matrix, or one per expert."""

    values: Tensor  # [..., O, D] in the compute dtype, int8, or the bits of e4m3 as uint8
    scale: Tensor  # [..., O] float32; of a plain matrix an empty tensor, which no kernel reads
    format: WeightFormat


def empty_matrix(shape: tuple[int, ...], like: Tensor, weight_format: WeightFormat) -> TritonMatrix:
    """Uninitialized, on the device of `like`, to be filled with `store`."""
    dtype = {"plain": like.dtype, "int8": torch.int8, "fp8": torch.uint8}[weight_format]
    num_scales = 0 if weight_format == "plain" else 1
    values = torch.empty(shape, dtype=dtype, device=like.device)
    scale = torch.empty([*shape[:-1]] if num_scales else [0], dtype=torch.float32, device=like.device)
    return TritonMatrix(values, scale, weight_format)


def pack(weight: Tensor, weight_format: WeightFormat) -> TritonMatrix:
    """One matrix [O, D]. A plain one is kept as it is."""
    if weight_format == "plain":
        return TritonMatrix(weight.contiguous(), torch.empty(0, dtype=torch.float32, device=weight.device), "plain")
    matrix = empty_matrix(tuple(weight.shape), weight, weight_format)
    store(weight, matrix, slice(0, len(weight)))
    return matrix


def store(weight: Tensor, matrix: TritonMatrix, outputs: slice, expert: int | None = None) -> None:
    """Writes weight [O', D] to rows `outputs` of the matrix, or of one expert's; quantized where the matrix is."""
    at = outputs if expert is None else (expert, outputs)
    if matrix.format == "plain":
        matrix.values[at] = weight
        return
    values, scale = quantize(weight, matrix.format)
    matrix.values[at] = values
    matrix.scale[at] = scale


def quantize(weight: Tensor, weight_format: WeightFormat) -> tuple[Tensor, Tensor]:
    """[O, D] -> int8 or the bits of e4m3 [O, D], and what a kernel multiplies its sums by, [O]."""
    if weight_format == "int8":
        values, scale = quantize_rows(weight)
        return values, scale[:, 0]
    largest = weight.abs().amax(-1, keepdim=True).float()  # [O, 1]
    scale = torch.where(largest > 0, largest / FP8_MAX, 1.0)
    values = (weight.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return values.view(torch.uint8), scale[:, 0] * FP8_SHIFT


def dequantize(matrix: TritonMatrix) -> Tensor:
    """The numbers that the kernels multiply by, float32 [..., O, D]: the definition of both formats."""
    if matrix.format == "plain":
        return matrix.values.float()
    if matrix.format == "int8":
        return matrix.values.float() * matrix.scale[..., None]
    return matrix.values.view(torch.float8_e4m3fn).float() * (matrix.scale / FP8_SHIFT)[..., None]
