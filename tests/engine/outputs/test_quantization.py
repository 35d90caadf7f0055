"""Quantized weights in the whole engine: native equals the reference, both are close to the unquantized network."""

from typing import Any

import pytest
import torch

from model.ops.native.library import NativeLibrary
from smoe import LocalEngine, SamplingParams
from tests.support.paths import DEMO

TEXT = "It was not in her power to refuse him, and she took his arm."
SCORED = SamplingParams(max_tokens=0, prompt_logprobs=True, num_logprobs=1)


def _logprobs(**settings: Any) -> torch.Tensor:
    """Log probability of each token of the text, given those before it."""
    engine = LocalEngine(DEMO, threads=1, num_kv_blocks=40, max_num_batched_tokens=64, **settings)
    [completion] = engine.generate(TEXT, SCORED)
    return torch.tensor([scored.logprob for scored in completion.prompt_logprobs])


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(("quantization", "bound"), [("int8", 0.06), ("int4", 0.5)])
def test_the_bundled_model_scores_text_as_the_reference_does_and_nearly_as_unquantized(
    quantization: str, bound: float
) -> None:
    exact = _logprobs(dtype="float32")
    reference = _logprobs(dtype="float32", backend="reference", quantization=quantization)
    assert 1e-3 < (reference - exact).abs().mean() < bound
    for isa in NativeLibrary().isas():
        ours = _logprobs(dtype="float32", isa=isa, quantization=quantization)
        # An activation on the edge between two integers may fall to either side.
        assert (ours - reference).abs().mean() < 0.1 * (reference - exact).abs().mean()
