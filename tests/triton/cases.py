"""What the kernel tests share: tolerances, random weights, and the backend under test.

They run under Triton's interpreter, whose products in bfloat16 are wrong: so float32 and float16.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.ops.interface import FfnWeights
from model.ops.triton.ops import TritonOps

DTYPES = [torch.float32, torch.float16]
ROUNDING = {torch.float32: 3e-6, torch.float16: 2e-3}  # error of a whole result, relative to the result


def assert_close(ours: Tensor, exact: Tensor, dtype: torch.dtype, roundings: float = 1.0) -> None:
    """Every row for itself: |ours - exact| / |exact| over its numbers."""
    assert ours.isfinite().all()
    error = (ours.double() - exact.double()).flatten(1).norm(dim=1) / exact.double().flatten(1).norm(dim=1).clamp(1e-9)
    assert float(error.max()) < roundings * ROUNDING[dtype], f"row {int(error.argmax())} is off by {float(error.max())}"


def random_ffn(dim: int, hidden: int, dtype: torch.dtype) -> FfnWeights:
    w1, w3 = torch.randn(2, hidden, dim).mul(dim**-0.5).to(dtype).unbind()
    return FfnWeights(w1, w3, torch.randn(dim, hidden).mul(hidden**-0.5).to(dtype))


def both_tilings(dtype: torch.dtype) -> Iterator[TritonOps]:
    """The backend as it is, and as --deterministic has it."""
    yield TritonOps(dtype)
    yield TritonOps(dtype, deterministic=True)


def integers(low: int, high: int) -> int:
    """One of low .. high, from torch's generator."""
    return int(torch.randint(low, high + 1, ()))


def row_by_row(a: NDArray[np.float32], b: NDArray[np.float32], dtype: np.dtype[np.float32]) -> NDArray[np.float32]:
    """A product for the interpreter whose rows do not depend on their place, as numpy's own do: a tensor core's do not
    either."""
    return (a[:, None, :] * b.T[None]).sum(-1, dtype=dtype)
