"""The library's sampling gives the tokens, histories and log probabilities of the reference backend."""

import random

import pytest
import torch

from model.ops.reference.ops import ReferenceOps
from model.sampling_batch import Status
from tests.support.kernels.native_cases import ISAS, native
from tests.support.kernels.sampling_cases import assert_same, random_logits, random_rows, sampled_by


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vocab_size", [1, 7, 50, 1023, 4000])
def test_the_library_samples_the_tokens_of_the_definition(isa: str, vocab_size: int, scale: int) -> None:
    rng = random.Random(f"{isa} {vocab_size}")
    statuses = set()
    for trial in range(60 * scale):
        logits, rows = random_logits(rng, vocab_size), random_rows(rng, vocab_size)
        expected, expected_history = sampled_by(ReferenceOps(), logits, rows)
        got, history = sampled_by(native(isa, rng.choice((1, 2))), logits, rows)
        assert_same(got, expected, rows, vocab_size)
        assert torch.equal(history, expected_history), trial
        statuses |= set(got.status.tolist())
    assert statuses == set(Status), "a status did not occur"
