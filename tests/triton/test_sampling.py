"""Sampling kernels give the tokens, histories and log probabilities of the reference backend."""

import random

import pytest
import torch

from model.ops.reference.ops import ReferenceOps
from model.ops.triton import sampling
from model.ops.triton.ops import TritonOps
from model.sampling_batch import Status
from tests.support.sampling_cases import assert_same, random_logits, random_rows, sampled_by


@pytest.mark.parametrize("vocab_size", [1, 50, 300])
def test_the_same_tokens_as_the_definition(vocab_size: int, scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vocabularies have one block or several, and more tokens than the search gathers."""
    monkeypatch.setattr(sampling, "BLOCK", 64)
    rng = random.Random(vocab_size)
    statuses = set()
    for trial in range(3 * scale):
        logits, rows = random_logits(rng, vocab_size), random_rows(rng, vocab_size)
        expected, expected_history = sampled_by(ReferenceOps(), logits, rows)
        got, history = sampled_by(TritonOps(torch.float32), logits, rows)
        assert_same(got, expected, rows, vocab_size)
        assert torch.equal(history, expected_history), trial
        statuses |= set(got.status.tolist())
    assert Status.DONE in statuses
