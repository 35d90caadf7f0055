"""8-bit weights are close to the weights they were made of."""

import pytest
import torch

from model.ops.triton.packed_weights import WeightFormat, dequantize, pack
from tests.triton.cases import DTYPES

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.mark.parametrize(("weight_format", "error"), [("int8", 0.015), ("fp8", 0.04)])
def test_quantized_weights_are_near_the_weights(dtype: torch.dtype, weight_format: WeightFormat, error: float) -> None:
    weight = torch.randn(40, 300).to(dtype) * torch.logspace(-3, 2, 40).to(dtype)[:, None]
    weight[7] = 0.0
    ours = dequantize(pack(weight, weight_format))
    assert torch.equal(ours[7], torch.zeros(300))
    relative = (ours - weight.float()).norm(dim=1) / weight.float().norm(dim=1).clamp(1e-9)
    assert float(relative.max()) < error
