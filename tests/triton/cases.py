"""Shared by the kernel tests: tolerances, random weights, and the backend under test.

The tests use float32 and, on a GPU, bfloat16. Under Triton's interpreter float16 takes its place, because bfloat16
products are wrong there.
"""

from collections.abc import Iterator

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from model.ops.triton.launch import launch_on_device
from model.ops.triton.ops import TritonOps
from model.ops.triton.pending_sum import Pending
from model.ops.triton.rms_norm import add_rms_norm

DTYPES = [torch.float32, torch.float16 if triton.knobs.runtime.interpret else torch.bfloat16]
ROUNDING = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # relative error of a row


def assert_close(ours: Tensor, exact: Tensor, dtype: torch.dtype, roundings: float = 1.0) -> None:
    """Check |ours - exact| / |exact| of every row."""
    assert ours.isfinite().all()
    error = (ours.double() - exact.double()).flatten(1).norm(dim=1) / exact.double().flatten(1).norm(dim=1).clamp(1e-9)
    assert float(error.max()) < roundings * ROUNDING[dtype], f"row {int(error.argmax())} is off by {float(error.max())}"


def summed(pending: Pending, like: Tensor) -> Tensor:
    """Return a pending sum [T, O] in the dtype of `like`, by the kernel that adds it to the residual, here zeros."""
    if isinstance(pending, Tensor):
        return pending
    num_rows, num_outputs = len(pending.values[0]) // pending.max_k, pending.values.shape[-1]
    zeros, weight = torch.zeros(num_rows, num_outputs, dtype=like.dtype), torch.ones(num_outputs, dtype=like.dtype)
    return add_rms_norm(launch_on_device, zeros, pending, weight, 1e-5)[0]


def both_tilings(dtype: torch.dtype) -> Iterator[TritonOps]:
    """Yield the backend without and with `deterministic`."""
    yield TritonOps(dtype)
    yield TritonOps(dtype, deterministic=True)


def integers(low: int, high: int) -> int:
    """Return an integer in low .. high from torch's generator."""
    return int(torch.randint(low, high + 1, ()))


def row_by_row(a: NDArray[np.float32], b: NDArray[np.float32], dtype: np.dtype[np.float32]) -> NDArray[np.float32]:
    """Multiply so that a row's bits do not depend on its index, as on tensor cores; numpy's product lacks that."""
    return (a[:, None, :] * b.T[None]).sum(-1, dtype=dtype)


def in_blocks(cache: Tensor) -> Tensor:
    """Convert int8 rows with their scales to the blocks of model/ops/triton/kv_blocks.py; others stay as they are."""
    if cache.dtype != torch.int8:
        return cache
    numbers, scales = cache[..., :-4].flatten(1), cache[..., -4:].flatten(1)
    return torch.cat((numbers, scales), dim=1).view(cache.shape)


def in_rows(blocks: Tensor) -> Tensor:
    """Convert blocks back to rows with their scales."""
    if blocks.dtype != torch.int8:
        return blocks
    num_blocks, block_size, num_kv_heads, row = blocks.shape
    count = block_size * num_kv_heads * (row - 4)
    numbers, scales = blocks.flatten(1)[:, :count], blocks.flatten(1)[:, count:]
    shape = num_blocks, block_size, num_kv_heads, -1
    return torch.cat((numbers.reshape(shape), scales.reshape(shape)), dim=-1)
