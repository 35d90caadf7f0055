"""Sampling of the reference backend against naive loops over tokens, in Python's own floats."""

import math
import random

import pytest
import torch

from model.ops.reference.philox import uniforms
from model.ops.reference.sampling import sample, shape_logits
from model.sampling_batch import FloatParam, IntParam, SamplingRows, Status
from tests.support.kernels.sampling_cases import NUM_ROWS, random_logits, random_rows


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _naive_token(logits: list[float], rows: SamplingRows, row: int) -> int:
    """Return the token of one row, from logits with penalties, biases and masks already applied."""
    params, numbers = rows.float_params[row].tolist(), rows.int_params[row].tolist()
    ids = sorted((i for i, logit in enumerate(logits) if logit > -math.inf), key=lambda i: (-logits[i], i))
    temperature = params[FloatParam.TEMPERATURE]
    if temperature == 0:
        return ids[0]
    probs = {i: math.exp((logits[i] - logits[ids[0]]) / temperature) for i in ids}
    ids = [i for i in ids if probs[i] >= params[FloatParam.MIN_P]]
    if numbers[IntParam.TOP_K] > 0:
        ids = ids[: numbers[IntParam.TOP_K]]
    if params[FloatParam.TOP_P] < 1:
        limit, before, kept = params[FloatParam.TOP_P] * sum(probs[i] for i in ids), 0.0, []
        for i in ids:
            if kept and before >= limit:
                break
            kept.append(i)
            before += probs[i]
        ids = kept
    columns = IntParam.SEED, IntParam.NUM_TOKENS, IntParam.PROMPT_INDEX, IntParam.CHOICE_INDEX
    target = uniforms(*([numbers[column]] for column in columns))[0] * sum(probs[i] for i in ids)
    for i in sorted(ids):
        target -= probs[i]
        if target < 0:
            return i
    return max(ids)


@pytest.mark.parametrize("vocab_size", [1, 7, 50])
def test_every_row_has_the_token_of_the_naive_loop_or_says_why_it_has_none(vocab_size: int) -> None:
    rng = random.Random(vocab_size)
    num_drawn = 0
    for _ in range(60):
        logits, rows = random_logits(rng, vocab_size), random_rows(rng, vocab_size)
        shaped = shape_logits(logits.nan_to_num(posinf=0.0, neginf=-math.inf), rows)
        history = rows.history.clone()
        result = sample(logits, rows)
        for row in range(NUM_ROWS):
            target, place = (int(rows.int_params[row, c]) for c in (IntParam.TARGET, IntParam.NUM_TOKENS))
            token = int(result.token_ids[row])
            is_finite = bool((logits[row] < math.inf).all()) and bool((logits[row] > -math.inf).any())
            if not is_finite:
                assert (result.status[row], token) == (Status.NOT_FINITE, 0)
            elif target >= 0:
                assert (result.status[row], token) == (Status.DONE, target)
            elif not bool((shaped[row] > -math.inf).any()):
                assert (result.status[row], token) == (Status.NO_TOKEN, 0)
            else:
                assert (result.status[row], token) == (Status.DONE, _naive_token(shaped[row].tolist(), rows, row))
                num_drawn += 1
            kept = history[int(rows.int_params[row, IntParam.HISTORY_ROW]), place]
            assert rows.history[int(rows.int_params[row, IntParam.HISTORY_ROW]), place] == (
                token if target < 0 else kept
            )
    assert num_drawn > 50


def test_log_probabilities_are_those_of_the_raw_logits() -> None:
    rng = random.Random(0)
    logits, rows = torch.randn(NUM_ROWS, 20), random_rows(rng, 20)
    result = sample(logits, rows)
    count = rows.max_logprobs
    for row in range(NUM_ROWS):
        total = math.log(sum(math.exp(logit) for logit in logits[row].tolist()))
        expected = [logit - total for logit in logits[row].tolist()]
        if count >= 0:
            assert float(result.logprob[row]) == pytest.approx(expected[int(result.token_ids[row])], abs=1e-5)
            best = sorted(range(20), key=lambda i: (-float(logits[row, i]), i))[:count]
            assert result.top_ids[row].tolist() == best
            assert result.top_logprobs[row].tolist() == pytest.approx([expected[i] for i in best], abs=1e-5)
