"""RMSNorm against float64, alone and behind the sum of a residual and an output in parts."""

import pytest
import torch
from torch import Tensor

from model.ops.triton.ops import TritonOps
from model.ops.triton.pending_sum import Parts
from tests.support.kernels import float64_oracle as oracle
from tests.triton.cases import DTYPES, assert_close

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EPS = 1e-5


@pytest.mark.parametrize(("num_rows", "dim"), [(1, 1), (2, 7), (3, 64), (5, 1000), (2, 4096)])
def test_rms_norm(dtype: torch.dtype, num_rows: int, dim: int) -> None:
    x, weight = (3 * torch.randn(num_rows, dim)).to(dtype), torch.rand(dim).to(dtype)
    assert_close(TritonOps(dtype).rms_norm(x, weight, EPS), oracle.rms_norm(x, weight, EPS), dtype)


def test_the_norm_of_a_row_of_zeros_is_zero(dtype: torch.dtype) -> None:
    x = torch.zeros(2, 40, dtype=dtype)
    assert torch.equal(TritonOps(dtype).rms_norm(x, torch.ones(40, dtype=dtype), EPS), x)


def _naive(parts: Parts) -> Tensor:
    """Add parts in order, number by number, in float32: [T, O]."""
    outputs = torch.zeros(parts.values.shape[1:])
    for part in parts.values:
        outputs = outputs + part
    if parts.shares is None or parts.expert_ids is None:
        return outputs
    total = torch.zeros(len(parts.shares), outputs.shape[1])
    for row, ids in enumerate(parts.expert_ids.tolist()):
        for choice, expert in enumerate(ids):
            if expert >= 0:
                total[row] += parts.shares[row, choice] * outputs[row * len(ids) + choice]
    return total


@pytest.mark.parametrize(("num_rows", "dim"), [(1, 1), (3, 70), (2, 1024)])
@pytest.mark.parametrize("num_splits", [1, 3])
def test_the_parts_of_an_output_are_summed_in_order_added_and_normalized(
    dtype: torch.dtype, num_rows: int, dim: int, num_splits: int
) -> None:
    """Rows of absent experts are NaN, so that reading one would show."""
    x, weight = torch.randn(num_rows, dim).to(dtype), torch.rand(dim).to(dtype)
    ids = torch.tensor([[3, 0, -1], [1, -1, -1], [2, 1, 0]], dtype=torch.int32)[:num_rows]
    by_pair = torch.randn(num_splits, num_rows * 3, dim)
    by_pair[:, ids.flatten() < 0] = float("nan")
    linear_parts = Parts(torch.randn(num_splits, num_rows, dim), None, None)
    for parts in (linear_parts, Parts(by_pair, torch.rand(num_rows, 3), ids)):
        before = x.clone()
        total, normed = TritonOps(dtype).add_rms_norm(x, parts, weight, EPS)
        assert torch.equal(total, x + _naive(parts).to(dtype))
        assert torch.equal(normed, TritonOps(dtype).rms_norm(total, weight, EPS))
        assert torch.equal(x, before)


def test_an_output_in_the_dtype_is_added_and_normalized(dtype: torch.dtype) -> None:
    x, pending, weight = torch.randn(3, 50).to(dtype), torch.randn(3, 50).to(dtype), torch.rand(50).to(dtype)
    total, normed = TritonOps(dtype).add_rms_norm(x, pending, weight, EPS)
    assert torch.equal(total, x + pending)
    assert_close(normed, oracle.rms_norm(total, weight, EPS), dtype)
