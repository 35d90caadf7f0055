"""What quantized weights cost the bundled model in quality, on a little text: the whole is measured by hand."""

import math

import pytest
import torch

from model.demo.training.quality import EXACT, Score, measure
from model.ops.quantization import Quantization
from tests.support.paths import DEMO, ROOT

TEXT = (ROOT / "docs" / "architecture.md").read_text()[:1500]


def test_scores_are_of_what_was_predicted() -> None:
    """Two positions, two tokens: by hand."""
    score = Score()
    ours, exact = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log(), torch.tensor([[0.25, 0.75], [0.25, 0.75]]).log()
    score.add(ours, exact, torch.tensor([0, 1]))
    assert score.perplexity == pytest.approx((0.5 * 0.75) ** -0.5)
    assert score.kl == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-5)
    assert (score.num_same, score.num_positions) == (1, 2)


@pytest.mark.parametrize(("kind", "perplexity", "same"), [("int8", 1.02, 0.9), ("int4", 1.1, 0.75)])
def test_quantized_weights_predict_nearly_as_float32_does(kind: Quantization, perplexity: float, same: float) -> None:
    torch.set_num_threads(1)
    scores = measure(DEMO, [TEXT], [("bfloat16", kind)])
    exact, ours = scores[EXACT], scores["bfloat16", kind]
    assert (exact.kl, exact.num_same) == (0, exact.num_positions)
    assert ours.perplexity < perplexity * exact.perplexity
    assert ours.num_same > same * ours.num_positions
