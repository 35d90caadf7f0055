"""Definition of the int8 rows of KV caches (model/kv_format.py), in plain torch.

An int8 row has K bytes and the 4 bytes of a float32 scale, its largest magnitude over 127; number k is byte k times the
scale. A row whose magnitudes are all below SMALLEST_SCALED becomes zeros. A row with NaN or Inf has the scale NaN, so
that every reader sees it.
"""

import torch
from torch import Tensor

from model.kv_format import SCALE_BYTES

SMALLEST_SCALED = 1e-30  # rows with a smaller largest magnitude become zeros


def as_cached(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert rows [..., K] to the form of a cache of `dtype`: [..., K], or [..., K + 4] for int8."""
    return quantize(rows) if dtype == torch.int8 else rows.to(dtype)


def as_numbers(cached: Tensor) -> Tensor:
    """Convert cached rows back to numbers: float32 [..., K]."""
    return dequantize(cached) if cached.dtype == torch.int8 else cached.float()


def quantize(rows: Tensor) -> Tensor:
    """Quantize rows: [..., K] -> int8 [..., K + 4]."""
    wide = rows.float()
    magnitude = wide.abs().amax(-1, keepdim=True)  # NaN if the row has one
    is_zero = magnitude < SMALLEST_SCALED
    scale = torch.where(is_zero, 0.0, magnitude / 127.0) + 0.0 * magnitude
    inverse = torch.where(is_zero, 0.0, torch.tensor(127.0) / magnitude)  # (127.0 / tensor would round twice)
    numbers = (wide * inverse).round().nan_to_num().to(torch.int8)
    return torch.cat((numbers, scale.contiguous().view(torch.int8)), dim=-1)


def dequantize(cached: Tensor) -> Tensor:
    """Dequantize rows: int8 [..., K + 4] -> float32 [..., K]."""
    numbers, scale = cached[..., :-SCALE_BYTES], cached[..., -SCALE_BYTES:]
    # A slice of one row counts as contiguous, but its storage begins anywhere.
    return numbers.float() * scale.clone(memory_format=torch.contiguous_format).view(torch.float32)
