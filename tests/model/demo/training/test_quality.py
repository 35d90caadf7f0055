"""Quality of the bundled model with quantized weights, on a short text; docs/benchmarks.md has the full measurement."""

import math

import pytest
import torch

from model.demo.training.quality import EXACT, Score, measure
from model.ops.quantization import Quantization
from tests.support.paths import DEMO

TEXT = """The engine reads a request, finds free blocks for its prompt, and computes the prompt in chunks. Each chunk
is a few rows of the next step, beside the rows of requests that are already writing their answers. No request waits
until another one is done, and none sees the tokens of another one.

A step has one row for every token that is computed in it. A row passes through all layers: it is normalized, attends to
the earlier positions of its own sequence, and is sent to two of the eight experts, whose outputs are added. At the end
the rows that need an answer are multiplied by the head, and a token is drawn for each of them.

It was a cold morning when she came down to the house by the river. Her sister had written that the garden was full of
apples, and that nobody had time to pick them. "You may stay as long as you like," she said, "but you must be patient
with my uncle, who has not been himself since the winter."

def total(values: list[float]) -> float:
    result = 0.0
    for value in values:
        result += value
    return result
"""


def test_scores_are_those_of_the_predictions() -> None:
    """Two positions and two tokens, computed by hand."""
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
