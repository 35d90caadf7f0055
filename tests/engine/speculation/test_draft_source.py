"""Drafts come from the request's own tokens and its prediction, and end where they would be useless."""

import random

import pytest

from engine.speculation.acceptance import AcceptanceRates
from engine.speculation.draft_source import MATCH_LENS, MAX_DRAFT, DraftSource


def draft_of(
    tokens: list[int], max_len: int = 4, *, prompt_len: int | None = None, **fields: tuple[int, ...]
) -> tuple[int, ...]:
    source = DraftSource(len(tokens) if prompt_len is None else prompt_len, AcceptanceRates(), **fields)
    draft = source.propose(tokens, max_len)
    return draft.token_ids if draft else ()


def test_a_draft_continues_the_last_place_of_the_last_tokens() -> None:
    assert draft_of([1, 2, 3, 4, 5, 6, 1, 2]) == (3, 4, 5, 6)
    assert draft_of([1, 2, 3, 4, 5, 6, 1, 2], max_len=1) == (3,)
    assert draft_of([1, 2, 3, 9, 1, 2]) == (3, 9, 1, 2)
    assert draft_of([1, 2, 3, 4, 5, 6, 9, 2]) == ()  # one equal token is no place


def test_a_longer_match_wins_over_a_later_one() -> None:
    assert draft_of([7, 8, 1, 2, 50, 51, 9, 9, 1, 2, 60, 61, 7, 8, 1, 2])[:2] == (50, 51)


def test_most_places_of_equal_length_decide() -> None:
    assert draft_of([1, 2, 50, 1, 2, 50, 1, 2, 60, 1, 2])[0] == 50


def test_a_repetition_goes_on_beyond_the_text() -> None:
    assert draft_of([5, 6, 7, 5, 6, 7, 5], max_len=7) == (6, 7, 5, 6, 7, 5, 6)


def test_the_prediction_is_followed_from_its_start_and_found_again_behind_a_change() -> None:
    prediction = (11, 12, 13, 14, 15, 16, 17, 18)
    assert draft_of([1, 11], prompt_len=1, prediction=prediction) == (12, 13, 14, 15)
    assert draft_of([1, 11, 90, 14, 15], prompt_len=1, prediction=prediction) == (16, 17, 18)
    assert draft_of([1], prompt_len=1, prediction=prediction) == ()  # no token is known yet


def test_a_draft_ends_before_a_token_that_would_end_the_request() -> None:
    assert draft_of([1, 2, 3, 4, 5, 6, 1, 2], end_token_ids=(5,)) == (3, 4)
    assert draft_of([1, 2, 3, 4, 5, 6, 1, 2], end_token_ids=(3,)) == ()


@pytest.mark.parametrize("seed", range(40))
def test_a_draft_is_what_a_naive_search_finds(seed: int) -> None:
    """The match is as long as any, and the draft begins with what most of the last four places say."""
    rng = random.Random(seed)
    tokens = [rng.choice([0, 1, 0xD800, 40_000, 70_000]) for _ in range(rng.randint(2, 120))]
    draft = draft_of(tokens, 1)
    for length in reversed(MATCH_LENS):
        ends = [i for i in range(length, len(tokens)) if tokens[i - length : i] == tokens[-length:]][::-1][:4]
        if ends:
            votes = [tokens[end] for end in ends]
            assert max(map(votes.count, votes)) == votes.count(draft[0])
            return
    assert draft == ()


def test_each_token_that_was_guessed_teaches_its_rate_once() -> None:
    rates, tokens = AcceptanceRates(), list(range(100, 130))
    source = DraftSource(len(tokens), rates)
    tokens += tokens[:2]
    draft = source.propose(tokens, 1)  # a step verifies one token of it, or none
    assert draft is not None
    before = [rates.rate(draft.evidence, place) for place in (0, 1, 2)]
    source.propose([*tokens, 102, 103, 99], MAX_DRAFT)
    after = [rates.rate(draft.evidence, place) for place in (0, 1, 2)]
    assert before == [0.5] * 3
    assert after[0] > 0.5 and after[1] > 0.5 and after[2] < 0.5
