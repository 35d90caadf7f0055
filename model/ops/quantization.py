"""Definition of int8 and int4 weights in plain torch; model/native/gemm/quant_formats.h describes the native formats.

lossless: the numbers of bfloat16 in fewer bits, of the native backend only (model/native/gemm/coded_weights.h).

int8: one float32 scale per output, q in -127 .. 127. int4: also, per output and group of 32 inputs, a whole number s,
1 .. 15, and a zero point z, 0 .. 15; weight = scale * s * (q - z), q in 0 .. 15. s * (q - z) is a number of int8, so
sums of products are exact in both. Activations that meet a quantized matrix are quantized to int8 too, each row by its
own largest magnitude. Shape letters as in model/ops/interface.py; C groups of a row.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Quantization: TypeAlias = Literal["none", "lossless", "int8", "int4"]

GROUP = 32
TINY = 1e-30  # rows whose magnitudes are all smaller become zeros
INT4_MOST = 120  # a row's largest magnitude as a number of int8: a multiple of the steps 8, 10, 12 and 15


@dataclass(frozen=True)
class QuantizedMatrix:
    """Quantized matrix [O, D]."""

    q: Tensor  # int8: [O, D] int8; int4: [O, C * 16] uint8, even inputs in the low 4 bits; C is even
    scales: Tensor  # [O, 1] float32
    num_inputs: int
    factors: Tensor | None = None  # of int4: s + 16 * z, [O, C] uint8

    def integers(self) -> Tensor:
        """Return the weights divided by the scales, [O, D] int8."""
        if self.factors is None:
            return self.q
        halves = torch.stack((self.q & 15, self.q >> 4), dim=-1).flatten(1)  # [O, C * 32]
        s, z = self.factors[..., None] & 15, self.factors[..., None] >> 4
        groups = s.to(torch.int8) * (halves.view(*self.factors.shape, GROUP).to(torch.int8) - z.to(torch.int8))
        return groups.flatten(1)[:, : self.num_inputs]

    def weight(self) -> Tensor:
        """Return the dequantized weights, [O, D] float64, without rounding."""
        return self.integers().double() * self.scales.double()


def quantize(weight: Tensor, quantization: Quantization) -> QuantizedMatrix:
    """Quantize weight [O, D] to int8 or int4, on any device."""
    return _to_int8(weight) if quantization == "int8" else _to_int4(weight)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row of x [T, D]: x ~ scale * q.

    Returns q [T, D] int8 and scale [T, 1] float32, which is NaN for rows with NaN or Inf.
    """
    steps, scale = _in_steps(x, 127)
    return steps.round().to(torch.int8), scale


def multiply(x: Tensor, matrix: QuantizedMatrix) -> Tensor:
    """Multiply quantized rows of x [T, D] by the matrix: [T, O] float32, rounded once, at the end."""
    q, scale = quantize_rows(x)
    return (q.double() @ matrix.weight().T * scale).float()


def _to_int8(weight: Tensor) -> QuantizedMatrix:
    q, scales = quantize_rows(weight)
    return QuantizedMatrix(q, scales, weight.shape[1])


def _in_steps(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Divide each row of x [T, D] by a scale: its largest magnitude becomes `most`. Rows with NaN or Inf become zeros.

    Returns the quotients [T, D] and the scales [T, 1], float32.
    """
    wide = x.float()
    largest = wide.abs().amax(-1, keepdim=True)
    steps = torch.full_like(largest, most)  # a tensor: torch rounds twice when it divides by a Python number
    scale = torch.where(largest < TINY, 0.0, largest / steps)
    inverse = torch.where(largest < TINY, 0.0, steps / largest)
    is_finite = largest < torch.inf
    return torch.where(is_finite, wide * inverse, 0.0), torch.where(is_finite, scale, torch.nan)


def _to_int4(weight: Tensor) -> QuantizedMatrix:
    num_inputs = weight.shape[1]
    steps, scales = _in_steps(weight, INT4_MOST)
    groups = F.pad(steps, (0, -num_inputs % (2 * GROUP))).view(len(weight), -1, GROUP)  # [O, C, 32]
    s, z = _best_factors(groups)  # [O, C, 1]
    halves = _round_to_int4(groups, s, z).to(torch.uint8).flatten(1)  # [O, C * 32]
    factors = (s + 16 * z)[..., 0].to(torch.uint8)
    return QuantizedMatrix(halves[:, ::2] | halves[:, 1::2] << 4, scales, num_inputs, factors)


def _best_factors(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return s and z with the least squared error, [O, C, 1] float32.

    Candidates of s: that with which 15 steps are as long as the group's range (which contains zero), and its
    neighbours, in ascending order; ties to the first.
    """
    most, least = groups.amax(-1, keepdim=True).clamp(min=0), groups.amin(-1, keepdim=True).clamp(max=0)
    middle = (least + most) / 2
    steps = ((most - least) / torch.full_like(most, 15)).round()
    best_s, best_z, least_error = (torch.full_like(most, value) for value in (0, 0, torch.inf))
    for step in (-1, 0, 1):
        s = (steps + step).clamp(1, 15)
        z = _zero_point(s, middle)
        error = _sum_by_halves((groups - s * (_round_to_int4(groups, s, z) - z)).square())
        is_better = error < least_error
        best_s, best_z = torch.where(is_better, s, best_s), torch.where(is_better, z, best_z)
        least_error = torch.minimum(error, least_error)
    return best_s, best_z


def _zero_point(s: Tensor, middle: Tensor) -> Tensor:
    """Put the middle of the range between q = 7 and 8, as far as s * (q - z) lies in -128 .. 127 for all q."""
    first = (15 - (torch.full_like(s, 127) / s).trunc()).clamp(min=0)
    last = (torch.full_like(s, 128) / s).trunc().clamp(max=15)
    return (7.5 - middle * _inverse(s)).round().clamp(first, last)


def _round_to_int4(groups: Tensor, s: Tensor, z: Tensor) -> Tensor:
    return ((groups * _inverse(s)).round() + z).clamp(0, 15)


def _inverse(s: Tensor) -> Tensor:
    return torch.ones_like(s) / s


def _sum_by_halves(x: Tensor) -> Tensor:
    """Sum [..., 32] -> [..., 1], in the order of additions of the native backend."""
    while x.shape[-1] > 1:
        first, second = x.chunk(2, dim=-1)
        x = first + second
    return x
