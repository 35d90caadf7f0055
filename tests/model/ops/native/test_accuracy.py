"""exp, sin and cos of the native backend against float64. It has its own, because those of C libraries differ."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.ops.interface import FfnWeights
from model.ops.native.ops import inverse_frequencies
from tests.support.kernels.attention_cases import Heads, Part, Positions, attend
from tests.support.kernels.native_cases import ISAS, native
from tests.support.kernels.paged import Running, make_batch

ULP = 2.0**-23

pytestmark = pytest.mark.parametrize("isa", ISAS)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _in_ulps(ours: Tensor, exact: Tensor) -> float:
    return float(((ours.double() - exact) / exact).abs().max() / ULP)


def test_exp_in_softmax(isa: str) -> None:
    """Two keys with scores x and 0, the first with value 1, the second with 0, give e^x / (e^x + 1)."""
    heads = Heads(1, 1, 4)
    for x in torch.cat((-torch.rand(300) * 87, -torch.logspace(-6, 0, 100), torch.zeros(1))):
        score_x, value = torch.zeros(2, 1, 4), torch.zeros(2, 1, 4)
        score_x[0, 0, 0], value[0] = 2 * x, 1  # the score is the product over sqrt(4)
        [ours] = attend(native(isa), heads, [Part(Positions(torch.ones(2, 1, 4), score_x, value), 1, 1)])
        exact = x.double().exp() / (x.double().exp() + 1)
        assert _in_ulps(ours, exact) < 4, float(x)


def test_weights_of_bfloat16_attention(isa: str) -> None:
    """As above with bfloat16 scores: weights e^x are rounded once, to bfloat16, after an error of at most 9e-5."""
    heads, ones = Heads(1, 1, 4), torch.ones(2, 1, 4, dtype=torch.bfloat16)
    for x in torch.cat((-torch.rand(300) * 80, -torch.logspace(-6, 0, 100), torch.zeros(1))).bfloat16():
        score_x, value = torch.zeros_like(ones), torch.zeros_like(ones)
        score_x[0, 0, 0], value[0] = 2 * x, 1
        parts = [Part(Positions(ones, score_x, value), 1, 1)]
        share = attend(native(isa), heads, parts, out_dtype=torch.float32)[0][0, 0].double()
        exact = x.double().exp()
        assert abs(share / (1 - share) - exact) <= (2**-8 + 1e-4) * exact, float(x)


def test_exp_in_silu(isa: str) -> None:
    """One hidden number, w3 x = w2 = 1: the FFN is x / (1 + e^-x)."""
    x = torch.cat((torch.linspace(-80, 80, 2001), torch.logspace(-30, 0, 100), -torch.logspace(-30, 0, 100)))
    rows = torch.stack((x, torch.ones_like(x)), dim=1)
    weights = FfnWeights(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0], [1.0]]))
    ours = native(isa).ffn(rows, native(isa).pack_ffn(weights))[:, 0]
    assert _in_ulps(ours, x.double() / (1 + (-x.double()).exp())) < 4


@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_sines_and_cosines_of_rotary_angles(isa: str, theta: float) -> None:
    """Correct to a rounding for the float32 products position * frequency, up to Mixtral's longest context."""
    positions = torch.cat((torch.arange(2000), torch.randint(2000, 65536, (1000,))))
    batch = replace(make_batch([(Running([0], [1]), 1)], block_size=1), positions=positions)
    config = replace(Heads(head_dim=128).config, rope_theta=theta)
    metadata = native(isa).prepare_batch(config, batch, 1)
    angles = (positions.float()[:, None] * inverse_frequencies(config)).double()
    for ours, exact in ((metadata.cos, angles.cos()), (metadata.sin, angles.sin())):
        # Near a zero of the function the error is bounded absolutely.
        assert ((ours.double() - exact).abs() <= 0.51 * ULP * exact.abs() + 1e-14).all()
    scaled = native(isa).prepare_batch(replace(config, rope_factor=1.2), batch, 1)
    assert torch.equal(scaled.cos, metadata.cos * 1.2) and torch.equal(scaled.sin, metadata.sin * 1.2)
