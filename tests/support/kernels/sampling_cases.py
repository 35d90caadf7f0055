"""Random inputs for samplers: logits with ties, NaN and infinities, and sampling parameters of all kinds."""

import math
import random
from dataclasses import replace

import torch

from model.sampling_batch import FloatParam, IntParam, SampledRows, SamplingRows, Status

NUM_ROWS, HISTORY_LEN = 5, 30


def random_logits(rng: random.Random, vocab_size: int) -> torch.Tensor:
    generator = torch.Generator(torch.get_default_device()).manual_seed(rng.randrange(2**31))
    logits = torch.randn(NUM_ROWS, vocab_size, generator=generator) * rng.choice((0.0, 0.01, 1.0, 4.0, 100.0))
    kind = rng.randrange(4)
    if kind == 0:
        logits = logits.round()  # many ties, 0 and -0 among them
    elif kind == 1:
        logits[rng.randrange(NUM_ROWS), rng.randrange(vocab_size)] = rng.choice((float("nan"), float("inf")))
        logits[rng.randrange(NUM_ROWS)] = float("-inf")
    elif kind == 2:
        logits[:, rng.randrange(vocab_size)] = rng.choice((3e38, -3e38, float("-inf")))
    return logits


def _random_row(rng: random.Random, row: int, vocab_size: int) -> tuple[list[float], list[int]]:
    penalties = [rng.choice((1.0, 1.3, 0.7)), rng.choice((0.0, 0.5, -0.5)), rng.choice((0.0, 1.0))]
    penalties = rng.choice(([1.0, 0.0, 0.0], penalties))
    num_tokens = rng.randint(1, HISTORY_LEN - 1)
    float_params = [
        rng.choice((0.0, 0.3, 1.0, 1.7)),
        rng.choice((1.0, 0.9, 0.3, 1e-9)),
        rng.choice((0.0, 0.05, 0.5, 1.0)),
    ]
    int_params = [
        rng.choice((0, 1, 5, vocab_size - 1, 10**6)),
        rng.choice((-1, 0, 3)),
        rng.randrange(-(2**63), 2**63),
        rng.randrange(3),
        rng.randrange(8),
        rng.randint(1, num_tokens),
        num_tokens,
        rng.choice((-1, -1, rng.randrange(vocab_size))),
        NUM_ROWS - 1 - row,
        rng.choice((-1, 0, 1)),
    ]
    return float_params + penalties, int_params


def random_rows(rng: random.Random, vocab_size: int) -> SamplingRows:
    float_params, int_params = zip(*(_random_row(rng, row, vocab_size) for row in range(NUM_ROWS)), strict=True)
    generator = torch.Generator(torch.get_default_device()).manual_seed(rng.randrange(2**31))
    masks = torch.randint(-(2**31), 2**31, (2, -(-vocab_size // 32)), generator=generator, dtype=torch.int64).int()
    masks[1] = 1 << rng.randrange(min(31, vocab_size)) if rng.random() < 0.5 else 0
    is_plain = rng.random() < 0.3
    bounds = sorted(rng.choices(range(NUM_ROWS + 1), k=NUM_ROWS - 1))
    biases = list(zip([0, *bounds], [*bounds, NUM_ROWS], strict=True))
    return SamplingRows(
        float_params=torch.tensor(float_params),
        int_params=torch.tensor(
            [[*row[:9], -1, 0, 0] if is_plain else [*row, *bias] for row, bias in zip(int_params, biases, strict=True)]
        ),
        history=torch.randint(vocab_size, (NUM_ROWS, HISTORY_LEN), generator=generator, dtype=torch.int32),
        bias_ids=torch.randint(vocab_size, (0 if is_plain else NUM_ROWS,), generator=generator, dtype=torch.int32),
        bias_values=torch.tensor([0.0, 5.0, -100.0, float("-inf"), 1e30])[: 0 if is_plain else NUM_ROWS],
        masks=None if is_plain else masks,
        max_logprobs=max(row[IntParam.NUM_LOGPROBS] for row in int_params),
        is_greedy=all(row[FloatParam.TEMPERATURE] == 0 for row in float_params),
        has_penalties=True,
    )


def sampled_by(ops: object, logits: torch.Tensor, rows: SamplingRows) -> tuple[SampledRows, torch.Tensor]:
    history = torch.zeros(NUM_ROWS, HISTORY_LEN + 7, dtype=torch.int32)[:, :HISTORY_LEN]  # a slice of wider rows
    history.copy_(rows.history)
    return ops.sample(logits, replace(rows, history=history)), history  # type: ignore[attr-defined, no-any-return]


def assert_same(got: SampledRows, expected: SampledRows, rows: SamplingRows, vocab_size: int) -> None:
    """Compare status and tokens, and log probabilities of rows that are done and request them."""
    assert torch.equal(got.status, expected.status)
    assert torch.equal(got.token_ids, expected.token_ids)
    for row in range(NUM_ROWS):
        count = int(rows.int_params[row, IntParam.NUM_LOGPROBS])
        if got.status[row] == Status.DONE and count >= 0:
            count = min(count, vocab_size)
            ours, theirs = float(got.logprob[row]), float(expected.logprob[row])
            assert math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-6)
            assert torch.equal(got.top_ids[row, :count], expected.top_ids[row, :count])
            torch.testing.assert_close(got.top_logprobs[row, :count], expected.top_logprobs[row, :count])
