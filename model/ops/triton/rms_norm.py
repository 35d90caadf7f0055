"""RMSNorm in one pass, one program per row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.triton.launch import Launch, power_of_two

# mypy: disable-error-code="untyped-decorator"


@triton.jit
def rms_norm_kernel(
    x: tl.tensor, weight: tl.tensor, normed: tl.tensor, dim: tl.tensor, eps: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Compute normed = x / sqrt(mean(x^2) + eps) * weight of one row, with the roundings of the reference."""
    row = tl.program_id(0).to(tl.int64) * dim
    columns = tl.arange(0, BLOCK)
    inside = columns < dim
    value = tl.load(x + row + columns, mask=inside, other=0.0)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide) / dim + eps)
    rounded = (wide * scale).to(value.dtype)
    tl.store(normed + row + columns, tl.load(weight + columns, mask=inside, other=0.0) * rounded, mask=inside)


def rms_norm(launch: Launch, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalize rows: [T, D] -> [T, D]."""
    normed, dim = torch.empty_like(x), x.shape[-1]
    block = power_of_two(dim)
    warps = max(1, min(16, block // 512))
    launch(rms_norm_kernel, (len(x),), x, weight, normed, dim, eps, BLOCK=block, num_warps=warps, num_stages=1)
    return normed
