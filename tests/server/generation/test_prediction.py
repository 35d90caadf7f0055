"""Tokens of a prediction that a completion has."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.generation.prediction import PredictedTokens, PredictionTally

IDS = st.lists(st.integers(0, 3), max_size=30)


def counts(prediction: list[int], completion: list[int]) -> tuple[int, int]:
    tally = PredictionTally(PredictedTokens(prediction))
    tally.push(completion)
    return tally.num_accepted, tally.num_rejected


@pytest.mark.parametrize(
    ("prediction", "completion", "accepted"),
    [
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 2, 3], [1, 2, 3, 4, 5], 3),
        ([1, 2, 3], [], 0),
        ([1, 2, 3], [7, 8, 9], 0),
        ([1, 2, 3, 4, 5, 6], [1, 2, 9, 5, 6], 4),  # 3 and 4 are replaced by 9
        ([1, 2, 3, 4, 5, 6], [1, 2, 4, 5, 6], 5),  # 3 is left out: 4 counts once 5 has followed
        ([1, 2, 3, 4], [9, 1, 2, 3, 4], 4),  # one token comes before
        ([1, 2, 3, 4], [3, 4, 1, 2], 2),  # in this order only
    ],
)
def test_tokens_of_the_prediction_count_where_the_completion_follows_it(
    prediction: list[int], completion: list[int], accepted: int
) -> None:
    assert counts(prediction, completion) == (accepted, len(prediction) - accepted)


@given(prediction=IDS, completion=IDS)
def test_no_more_tokens_count_than_the_longest_common_subsequence_has(
    prediction: list[int], completion: list[int]
) -> None:
    accepted, rejected = counts(prediction, completion)
    assert 0 <= accepted <= _common(prediction, completion)
    assert accepted + rejected == len(prediction)
    assert counts(prediction, prediction) == (len(prediction), 0)


@given(prediction=IDS, pair=st.tuples(st.integers(0, 5), st.integers(0, 5)), start=st.integers(0, 30))
def test_a_pair_is_found_at_its_first_place_from_the_start_on(
    prediction: list[int], pair: tuple[int, int], start: int
) -> None:
    places = [place for place, one in enumerate(pairwise(prediction)) if one == pair and place >= start]
    start = min(start, len(prediction))
    assert PredictedTokens(prediction).next_place(pair, start) == (places[0] if places else None)


def _common(a: list[int], b: list[int]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for index, y in enumerate(b, 1):
            before, lengths[index] = lengths[index], before + 1 if x == y else max(lengths[index], lengths[index - 1])
    return lengths[-1]


@given(prediction=IDS, completion=IDS, cut=st.integers(0, 30))
def test_the_counts_do_not_depend_on_how_the_tokens_arrive(
    prediction: list[int], completion: list[int], cut: int
) -> None:
    tally = PredictionTally(PredictedTokens(prediction))
    tally.push(completion[:cut])
    tally.push(completion[cut:])
    assert (tally.num_accepted, tally.num_rejected) == counts(prediction, completion)
