"""Random weights for tests of ops."""

import torch

from model.ops.interface import FfnWeights


def random_ffn(dim: int, hidden: int, dtype: torch.dtype) -> FfnWeights:
    """Draw one SwiGLU FFN from torch's generator. Products keep the size of their input."""
    w1, w3 = torch.randn(2, hidden, dim).mul(dim**-0.5).to(dtype).unbind()
    return FfnWeights(w1, w3, torch.randn(dim, hidden).mul(hidden**-0.5).to(dtype))
