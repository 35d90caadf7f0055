"""RMSNorm against float64."""

import pytest
import torch

from model.ops.triton.ops import TritonOps
from tests.support import float64_oracle as oracle
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
