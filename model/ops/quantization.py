"""Definition of int8 and int4 weights in plain torch; model/native/gemm/quant_formats.h describes the native formats.

int8: one float32 scale per output, q in -127 .. 127. int4: one bfloat16 scale per output and group of 32 inputs, q in
-8 .. 7. Activations that meet a quantized matrix are quantized to int8 too, each row by its own largest magnitude.
Shape letters as in model/ops/interface.py; C groups of a row.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Quantization: TypeAlias = Literal["none", "int8", "int4"]

GROUP = 32
TINY = 1e-30  # rows whose magnitudes are all smaller become zeros
# Candidates for the q of the number farthest from zero in int4. They give the scale; all q are clipped to -8 .. 7.
FARTHEST = (-8.0, -7.0, -7.5, -8.5, -9.0)


@dataclass(frozen=True)
class QuantizedMatrix:
    """Quantized matrix [O, D]: weight = scale * q."""

    q: Tensor  # int8: [O, D] int8; int4: [O, C * 16] uint8, even inputs in the low 4 bits
    scales: Tensor  # int8: [O, 1] float32; int4: [O, C] bfloat16
    num_inputs: int

    def weight(self) -> Tensor:
        """Return the dequantized weights, [O, D] float64, without rounding."""
        if self.q.dtype == torch.int8:
            return self.q.double() * self.scales.double()
        halves = torch.stack((self.q & 15, self.q >> 4), dim=-1).flatten(1).double() - 8  # [O, C * 32]
        groups = halves.view(*self.scales.shape, GROUP) * self.scales.double()[..., None]
        return groups.flatten(1)[:, : self.num_inputs]


def quantize(weight: Tensor, quantization: Quantization) -> QuantizedMatrix:
    """Quantize weight [O, D] to int8 or int4, on any device."""
    return _to_int8(weight) if quantization == "int8" else _to_int4(weight)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row of x [T, D]: x ~ scale * q.

    Returns q [T, D] int8 and scale [T, 1] float32, which is NaN for rows with NaN or Inf.
    """
    wide = x.float()
    largest = wide.abs().amax(-1, keepdim=True)
    most = torch.full_like(largest, 127)  # a tensor: torch rounds twice when it divides by a Python number
    scale = torch.where(largest < TINY, 0.0, largest / most)
    inverse = torch.where(largest < TINY, 0.0, most / largest)
    is_finite = largest < torch.inf
    q = torch.where(is_finite, wide * inverse, 0.0).round()
    return q.to(torch.int8), torch.where(is_finite, scale, torch.nan)


def multiply(x: Tensor, matrix: QuantizedMatrix) -> Tensor:
    """Multiply quantized rows of x [T, D] by the matrix: [T, O] float32, rounded once, at the end."""
    q, scale = quantize_rows(x)
    return (q.double() @ matrix.weight().T * scale).float()


def _to_int8(weight: Tensor) -> QuantizedMatrix:
    q, scales = quantize_rows(weight)
    return QuantizedMatrix(q, scales, weight.shape[1])


def _to_int4(weight: Tensor) -> QuantizedMatrix:
    num_inputs = weight.shape[1]
    groups = F.pad(weight.float(), (0, -num_inputs % GROUP)).view(len(weight), -1, GROUP)  # [O, C, 32]
    scales = _best_scales(groups)  # [O, C, 1]
    halves = (_round_to_int4(groups, scales) + 8).to(torch.uint8).flatten(1)  # [O, C * 32]
    return QuantizedMatrix(halves[:, ::2] | halves[:, 1::2] << 4, scales[..., 0].bfloat16(), num_inputs)


def _best_scales(groups: Tensor) -> Tensor:
    """Return the scales with the least squared error among FARTHEST, ties to the first: [O, C, 1] float32."""
    most, least = groups.amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
    farthest = torch.where(most >= -least, most, least)
    best = torch.zeros_like(farthest)
    least_error = torch.full_like(farthest, torch.inf)
    for target in FARTHEST:
        scales = (farthest / torch.full_like(farthest, target)).bfloat16().float()
        error = _sum_by_halves((groups - scales * _round_to_int4(groups, scales)).square())
        best = torch.where(error < least_error, scales, best)
        least_error = torch.minimum(error, least_error)
    return torch.where((groups * 0 == 0).all(-1, keepdim=True), best, torch.nan)


def _round_to_int4(groups: Tensor, scales: Tensor) -> Tensor:
    inverse = torch.where(scales == 0, 0.0, torch.ones_like(scales) / scales)
    return (groups * inverse).round().clamp(-8, 7)


def _sum_by_halves(x: Tensor) -> Tensor:
    """Sum [..., 32] -> [..., 1], in the order of additions of the native backend."""
    while x.shape[-1] > 1:
        first, second = x.chunk(2, dim=-1)
        x = first + second
    return x
