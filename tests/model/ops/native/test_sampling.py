"""The library's sampling gives the tokens, histories and log probabilities of the reference backend."""

import random

import pytest
import torch

from model.ops.reference.ops import ReferenceOps
from model.sampling_batch import IntParam, Status
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


@pytest.mark.parametrize("isa", ISAS)
def test_the_same_rows_with_new_numbers_are_sampled_anew(isa: str) -> None:
    rng, kept = random.Random(isa), native(isa)
    logits, rows = random_logits(rng, 50), random_rows(rng, 50)
    for _ in range(3):
        expected, _ = sampled_by(ReferenceOps(), logits, rows)
        assert_same(kept.sample(logits, rows), expected, rows, 50)
        logits.copy_(logits.flip(1))
        rows.int_params[:, IntParam.SEED] += 1


@pytest.mark.parametrize("isa", ISAS)
def test_nothing_of_a_call_is_kept_for_other_logits_or_other_rows(isa: str) -> None:
    """New logits may lie where freed ones lay."""
    rng, kept = random.Random(isa), native(isa)
    rows = random_rows(rng, 50)
    for trial in range(20):
        logits = random_logits(rng, 50)
        rows = random_rows(rng, 50) if trial % 2 else rows
        expected, _ = sampled_by(ReferenceOps(), logits, rows)
        assert_same(kept.sample(logits, rows), expected, rows, 50)
        del logits


@pytest.mark.parametrize("isa", ISAS)
def test_rows_in_turns_keep_their_results(isa: str) -> None:
    """As steps with drafts and without them do."""
    rng, kept = random.Random(isa), native(isa)
    cases = [(random_logits(rng, 50), random_rows(rng, 50)) for _ in range(3)]
    results = [kept.sample(*case) for case in cases]
    for case, result in zip(cases, results, strict=True):
        expected, _ = sampled_by(ReferenceOps(), *case)
        assert_same(result, expected, case[1], 50)
        assert kept.sample(*case) is result, "the arguments were prepared anew"
