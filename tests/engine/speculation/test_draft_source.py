"""Drafts come from the request's own tokens and its prediction, and end where they would be useless."""

import itertools
import random
from collections.abc import Sequence

import pytest

from engine.speculation.acceptance import FORCED, LAST_FORCED, AcceptanceRates, Evidence
from engine.speculation.draft_source import MATCH_LENS, MAX_CHANGED, MAX_DRAFT, MAX_SKIPPED, Draft, DraftSource


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
    assert source.propose(tokens, 1)  # a step verifies one token of it, or none
    evidence = Evidence(2, is_unanimous=True, is_predicted=False)
    before = [rates.rate(evidence, place) for place in (0, 1, 2)]
    source.propose([*tokens, 102, 103, 99], MAX_DRAFT)
    after = [rates.rate(evidence, place) for place in (0, 1, 2)]
    assert before == [0.25] * 3
    assert after[0] > 0.25 and after[1] > 0.25 and after[2] < 0.25


COPIED = list(range(100, 160))  # a prompt whose tokens all differ


def behind_change(*new: int, copied: int = 20, prompt: list[int] | None = None) -> tuple[int, ...]:
    """Return the guess behind `new` tokens that follow the first ones of a copied prompt, which were guessed."""
    prompt = prompt or COPIED
    source, tokens = DraftSource(len(prompt), AcceptanceRates()), list(prompt)
    for token_id in (*prompt[:copied], *new):
        tokens.append(token_id)
        draft = source.propose(tokens, 4)
    return draft.token_ids if draft else ()


def test_a_copy_goes_on_behind_one_replaced_token() -> None:
    assert behind_change(7) == (121, 122, 123, 124)


def test_a_copy_goes_on_where_its_last_token_occurs_near_the_change() -> None:
    assert behind_change(7, 8, 122) == (123, 124, 125, 126)  # 120 and 121 became 7 8
    assert behind_change(7, 120) == (121, 122, 123, 124)  # 7 was inserted
    assert behind_change(7, 8, 9, 10, 11, 122) == ()  # too far from the change to say much


def test_a_copy_goes_on_where_its_last_two_tokens_occur_first_behind_the_change() -> None:
    line_end = [1, 2]
    prompt = [*COPIED[:20], *line_end, *COPIED[20:40], *line_end, *COPIED[40:], *line_end, 3, 4, 5, 6]
    assert behind_change(*range(200, 220), *line_end, copied=10, prompt=prompt) == (120, 121, 122, 123)


def test_a_copy_wins_over_a_later_place_of_its_last_two_tokens() -> None:
    prompt = [*COPIED, 125, 126, 70, 71, 72, 73]
    assert behind_change(7, 8, 9, 125, 126, prompt=prompt) == (127, 128, 129, 130)


def test_behind_a_long_change_a_copy_is_not_looked_for() -> None:
    prompt = [*COPIED, 1, 2, *COPIED[:5], 1, 2, 3, 4, 5, 6]
    assert behind_change(*range(300, 300 + MAX_CHANGED - 2), 121, 122, prompt=prompt) == (123, 124, 125, 126)
    source, tokens = DraftSource(len(COPIED), AcceptanceRates()), list(COPIED)
    for token_id in (*COPIED[:20], *range(300, 302 + MAX_CHANGED)):
        tokens.append(token_id)
        source.propose(tokens, 4)
    assert source._change is None


def test_a_copy_that_is_not_found_at_once_is_looked_for_at_every_token() -> None:
    """Searches of the whole text become rare meanwhile."""
    assert behind_change(*range(300, 330), 121, 122) == (123, 124, 125, 126)
    assert behind_change(*range(300, 331), 121, 122) == (123, 124, 125, 126)


class FixedGrammar:
    """Allows the tokens of one text and forces its first ones."""

    def __init__(self, allowed: list[int], num_forced: int = 0) -> None:
        self.allowed, self.num_forced = allowed, num_forced

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        count = 0
        while count < len(token_ids) and list(token_ids[: count + 1]) == self.allowed[: count + 1]:
            count += 1
        return count

    def forced_tokens(self, max_len: int) -> list[int]:
        return self.allowed[: min(max_len, self.num_forced)]


def guided(tokens: list[int], grammar: FixedGrammar, rates: AcceptanceRates | None = None) -> Draft | None:
    return DraftSource(len(tokens), rates or AcceptanceRates()).propose(tokens, MAX_DRAFT, grammar)


REPEATED = [1, 2, 3, 4, 5, 6, 1, 2]  # continues with 3 4 5 6


def test_a_grammar_cuts_a_guess_where_it_forbids_a_token() -> None:
    draft = guided(REPEATED, FixedGrammar([3, 4, 90, 91, 92, 93]))
    assert draft is not None and draft.token_ids == (3, 4)
    assert guided(REPEATED, FixedGrammar([90])) is None


def test_text_that_the_grammar_forces_is_guessed_where_nothing_else_is() -> None:
    draft = guided([1, 2, 3], FixedGrammar([7, 8, 9], num_forced=2))
    assert draft is not None and draft.token_ids == (7, 8)
    assert guided([1, 2, 3], FixedGrammar([7, 8, 9])) is None


def test_of_guesses_that_begin_alike_the_longer_one_is_taken() -> None:
    longer = guided(REPEATED, FixedGrammar([3, 4, 5, 6, 1, 2, *range(50, 70)], num_forced=2))
    assert longer is not None and longer.token_ids == (3, 4, 5, 6, 1, 2)
    forced = guided(REPEATED, FixedGrammar([3, 4, 50, 51], num_forced=4))
    assert forced is not None and forced.token_ids == (3, 4, 50, 51)


@pytest.mark.parametrize("is_forced_right", [False, True])
def test_of_guesses_that_differ_the_one_is_taken_whose_kind_was_right_more_often(is_forced_right: bool) -> None:
    class TwoWays(FixedGrammar):
        """Allows 3 4 5, and forces a text that is usually written 30 31."""

        def forced_tokens(self, max_len: int) -> list[int]:
            return [30, 31]

    rates = AcceptanceRates()
    for _ in range(20):
        rates.record(FORCED, 0, is_right=is_forced_right)
        rates.record(Evidence(2, is_unanimous=True, is_predicted=False), 0, is_right=not is_forced_right)
    draft = guided(REPEATED, TwoWays([3, 4, 5]), rates)
    assert draft is not None and draft.token_ids == ((30, 31) if is_forced_right else (3, 4, 5))


def test_the_last_forced_token_has_a_rate_of_its_own() -> None:
    rates = AcceptanceRates()
    for _ in range(20):
        rates.record(FORCED, 0, is_right=True)
        rates.record(LAST_FORCED, 1, is_right=False)
    draft = guided([1, 2, 3], FixedGrammar([7, 8], num_forced=2), rates)
    assert draft is not None and draft.chances[0] > 0.9 and draft.chances[1] < 0.1


def test_a_guess_of_forced_text_stays_until_all_of_it_is_known() -> None:
    source, grammar = DraftSource(3, AcceptanceRates()), FixedGrammar([7, 8, 9], num_forced=3)
    tokens = [1, 2, 3]
    for token_id in (7, 8, 9):
        draft = source.propose(tokens, MAX_DRAFT, grammar)
        assert draft is not None and draft.token_ids[0] == token_id
        tokens.append(token_id)
        grammar = FixedGrammar([])  # is not asked again
    assert source.propose(tokens, MAX_DRAFT, grammar) is None


def test_a_text_in_which_nothing_is_found_is_searched_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    monkeypatch.setattr(DraftSource, "_search", lambda source, _: _note_failure(source, searched))
    source = DraftSource(1, AcceptanceRates())
    for length in range(1, 40):
        source.propose(list(range(length)), MAX_DRAFT)
    gaps = [second - first for first, second in itertools.pairwise(searched)]
    assert gaps == [1, 2, 4, *[MAX_SKIPPED + 1] * (len(gaps) - 3)] and len(gaps) > 5


def _note_failure(source: DraftSource, searched: list[int]) -> None:
    searched.append(len(source._text))
    source._back_off(len(source._text))


def test_a_right_guess_ends_the_search_for_less() -> None:
    source, tokens = DraftSource(4, AcceptanceRates()), [100, 101, 102, 103]
    for token_id in range(200, 230):
        source.propose(tokens, MAX_DRAFT)
        tokens.append(token_id)
    tokens += [100, 101, 102, 103]  # found at the latest MAX_SKIPPED tokens behind the first two
    found = []
    for token_id in (200, 201, 202, 203, 204, 205, 206, 207, 208):
        found.append(source.propose(tokens, MAX_DRAFT) is not None)
        tokens.append(token_id)
    assert found[-1] and source._num_failures == 0
