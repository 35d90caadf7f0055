"""What KV caches hold, in plain torch: the definition of the int8 rows of model/kv_format.py.

An int8 row is K bytes and the 4 of a float32 scale, its largest magnitude over 127; number k is byte k times the scale.
A row too small to divide by is zeros; one that holds a NaN or an infinity has a NaN for its scale, so that every reader
sees it.
"""

import torch
from torch import Tensor

from model.kv_format import SCALE_BYTES

SMALLEST_SCALED = 1e-30  # the largest magnitude of a row that is not zeros


def as_cached(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., K] numbers -> what a cache of `dtype` holds of them: [..., K], int8 [..., K + 4]."""
    return quantize(rows) if dtype == torch.int8 else rows.to(dtype)


def as_numbers(cached: Tensor) -> Tensor:
    """The inverse, in float32: [..., K]."""
    return dequantize(cached) if cached.dtype == torch.int8 else cached.float()


def quantize(rows: Tensor) -> Tensor:
    """[..., K] -> int8 [..., K + 4]."""
    wide = rows.float()
    magnitude = wide.abs().amax(-1, keepdim=True)  # NaN where one is
    is_zero = magnitude < SMALLEST_SCALED
    scale = torch.where(is_zero, 0.0, magnitude / 127.0) + 0.0 * magnitude
    inverse = torch.where(is_zero, 0.0, torch.tensor(127.0) / magnitude)  # (127.0 / tensor would round twice)
    numbers = (wide * inverse).round().nan_to_num().to(torch.int8)
    return torch.cat((numbers, scale.contiguous().view(torch.int8)), dim=-1)


def dequantize(cached: Tensor) -> Tensor:
    """int8 [..., K + 4] -> float32 [..., K]."""
    numbers, scale = cached[..., :-SCALE_BYTES], cached[..., -SCALE_BYTES:]
    return numbers.float() * scale.contiguous().view(torch.float32)
