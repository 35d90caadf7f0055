"""Sampling kernels give the tokens, histories and log probabilities of the reference backend."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from model.ops.reference.ops import ReferenceOps
from model.ops.triton import sampling
from model.ops.triton.launch import launch_on_device
from model.ops.triton.ops import TritonOps
from model.sampling_batch import FloatParam, IntParam, SamplingRows, Status
from tests.support.kernels.sampling_cases import assert_same, random_logits, random_rows, sampled_by


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


def test_rows_that_score_a_token_draw_none() -> None:
    """Their tokens are given, so that the kernel returns at once. Other rows of the batch draw as before."""
    rng = random.Random(0)
    rows = random_rows(rng, 50)
    rows.int_params[:, IntParam.TARGET] = torch.tensor([-1, 3, 3, -1, 3])
    rows.float_params[:, FloatParam.TEMPERATURE] = 0.0
    logits = torch.zeros(5, 50)
    logits[:, 7] = 1.0
    assert sampling._draw(launch_on_device, logits, rows).tolist() == [7, 0, 0, 7, 0]


@pytest.mark.parametrize("column", [IntParam.TOP_K, FloatParam.TOP_P], ids=["top_k", "top_p"])
def test_more_equal_logits_than_the_search_gathers(
    column: IntParam | FloatParam, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cuts cannot separate them: the first ones by id are kept, as the definition says."""
    monkeypatch.setattr(sampling, "BLOCK", 16)
    rows = random_rows(random.Random(1), 90)
    rows.int_params[:, IntParam.TARGET], rows.int_params[:, IntParam.TOP_K] = -1, 0
    rows.float_params[:, FloatParam.TOP_P], rows.float_params[:, FloatParam.MIN_P] = 1.0, 0.0
    rows.float_params[:, FloatParam.TEMPERATURE] = torch.tensor([1.0, 0.3, 1.7, 1.0, 2.0])
    params = rows.int_params if isinstance(column, IntParam) else rows.float_params
    params[:, column] = 5 if isinstance(column, IntParam) else 0.4
    logits = torch.zeros(5, 90)
    logits[1:, 80] = torch.tensor([1.0, -1.0, 1e30, -1e30])
    rows = replace(rows, masks=None, bias_ids=rows.bias_ids[:0], bias_values=rows.bias_values[:0], has_penalties=False)
    expected, _ = sampled_by(ReferenceOps(), logits, rows)
    got, _ = sampled_by(TritonOps(torch.float32), logits, rows)
    assert torch.equal(got.token_ids, expected.token_ids)


def _rows(top_k: int) -> SamplingRows:
    """Five rows with seeds of their own that sample at temperature 1 from all tokens (0) or the top k, without the
    other parameters."""
    rows = random_rows(random.Random(1), 90)
    rows.int_params[:, IntParam.TARGET], rows.int_params[:, IntParam.TOP_K] = -1, top_k
    rows.float_params[:, : FloatParam.REPETITION] = torch.tensor([1.0, 1.0, 0.0])  # temperature, top_p, min_p
    return replace(rows, masks=None, bias_ids=rows.bias_ids[:0], bias_values=rows.bias_values[:0], has_penalties=False)


def _assert_the_same_tokens(logits: torch.Tensor, rows: SamplingRows) -> list[int]:
    """Compare with the definition, log probabilities too, and return the tokens."""
    expected, _ = sampled_by(ReferenceOps(), logits, rows)
    got, _ = sampled_by(TritonOps(torch.float32), logits, rows)
    assert_same(got, expected, rows, logits.shape[1])
    return [int(token) for token in got.token_ids]


def test_many_unlikely_tokens_keep_their_share() -> None:
    """3,000 tokens, each e^-8.1 as likely as the last one, are drawn in nearly half of the rows."""
    logits = torch.full((5, 3001), -8.1)
    logits[:, -1] = 0.0
    tokens = _assert_the_same_tokens(logits, _rows(top_k=0))
    assert min(tokens) < 3000 == max(tokens)


@pytest.mark.parametrize("offset", [0.0, -50.0], ids=["signs", "negative"])
def test_candidates_that_fill_the_scratch_memory(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of both signs, and negative ones, whose bits are in the opposite order."""
    monkeypatch.setattr(sampling, "BLOCK", 16)
    rows = replace(_rows(top_k=5), max_logprobs=3)
    rows.int_params[:, IntParam.NUM_LOGPROBS] = 3
    assert len(set(_assert_the_same_tokens(torch.randn(5, 16) + offset, rows))) > 1


def test_tokens_at_a_cut_of_the_search_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search cuts at 8 - 8 and then midway between that and the number behind 8, which 60 of the logits equal.

    61 logits are at or above the second cut, fewer than top_k, and 60 lie between both: they fit the scratch memory.
    """
    monkeypatch.setattr(sampling, "BLOCK", 64)
    second_cut = 0.5 * float(torch.nextafter(torch.tensor(8.0), torch.tensor(9.0)))
    logits = torch.full((5, 200), -1.0)
    logits[:, 60:120], logits[:, 120] = torch.linspace(1.0, 3.9, 60), 8.0
    logits[:, :60] = second_cut
    assert len(set(_assert_the_same_tokens(logits, _rows(top_k=90)))) > 1


def test_what_the_scratch_memory_held_before_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 of its 16 numbers are written; the others look like logits."""
    monkeypatch.setattr(sampling, "BLOCK", 16)

    def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        scratch = arguments[4]
        assert scratch.shape == (5, 16)
        scratch.fill_(5.0)
        launch_on_device(kernel, grid, *arguments, **options)

    logits, rows = torch.randn(5, 10), _rows(top_k=2)
    expected, _ = sampled_by(ReferenceOps(), logits, rows)
    assert torch.equal(sampling._draw(launch, logits, rows), expected.token_ids)
    assert not torch.equal(expected.token_ids, logits.argmax(-1))
