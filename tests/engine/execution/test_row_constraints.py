"""Constraints of a row against loops over their ids."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from engine.execution.row_constraints import FORBIDDEN, RowConstraints
from engine.token_constraints import token_constraints
from engine.types import SamplingParams

VOCAB = 50
EOS = np.array([2], dtype=np.int32)

Words = Sequence[tuple[int, ...]]


def constraints(words: Words = (), bias: dict[int, float] | None = None, **params: object) -> RowConstraints:
    packed = token_constraints(logit_bias=bias, bad_words=words)
    return RowConstraints(SamplingParams(constraints=packed, **params), VOCAB)  # type: ignore[arg-type]


def naive(words: Words, bias: dict[int, float], generated: list[int], num_missing: int) -> list[tuple[int, float]]:
    found = [(token_id, value) for token_id, value in bias.items() if token_id < VOCAB]
    for word in words:
        *before, last = word
        if generated[len(generated) - len(before) :] == before and last < VOCAB and len(before) <= len(generated):
            found.append((last, FORBIDDEN))
    return found + [(token_id, FORBIDDEN) for token_id in (2, 7)] * (num_missing > 0)


def test_biases_are_those_of_a_loop_over_the_ids() -> None:
    rng = random.Random(0)
    for _ in range(300):
        words = [tuple(rng.choices(range(4), k=rng.randint(1, 4))) for _ in range(rng.randint(0, 6))] + [(VOCAB,)]
        bias = {rng.randrange(VOCAB + 5): rng.choice((-1.5, 0.25, 100.0)) for _ in range(rng.randint(0, 5))}
        generated = rng.choices(range(4), k=rng.randint(0, 6))
        row = constraints(words, bias, min_tokens=3, stop_token_ids=(7, VOCAB))
        ids, values = row.biases(generated, len(generated), EOS)
        pairs = list(zip(ids.tolist(), values.tolist(), strict=True))
        assert pairs == naive(words, bias, generated, 3 - len(generated))


@pytest.mark.parametrize(("words", "are_long"), [((), False), ([(3,)], False), ([(3,), (4, 5)], True)])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_without_long_words_only_the_number_of_tokens_changes_biases(words: Words, are_long: bool, length: int) -> None:
    row = constraints(words, {5: 1.0}, min_tokens=2)
    behind_4, behind_9 = (row.biases([token] * length, length, EOS)[0].tolist() for token in (4, 9))
    assert row.has_long_words == are_long == (behind_4 != behind_9)
    assert (row.min_tokens > length) == (EOS[0] in behind_4)
