"""Time that requests have left for the drafts of others."""

import random

from engine.speculation.acceptance import AcceptanceRates
from engine.speculation.draft_source import DraftSource
from engine.speculation.time_left import FIRST_LEFT, FIRST_LEFT_S, MAX_LEFT, MAX_STRETCH, TimeLeft

PLAIN_S = 0.01
FIRST_S = min(FIRST_LEFT * PLAIN_S, FIRST_LEFT_S)


def _source() -> DraftSource:
    return DraftSource(1, AcceptanceRates())


def _limit_s(left: TimeLeft, source: DraftSource, length: int) -> float:
    left.begin([(source, length)], PLAIN_S)
    return left.limit_s([source], PLAIN_S)


def _step(left: TimeLeft, source: DraftSource, length: int, drafted: int, right: int, seconds: float) -> int:
    """Run one step with drafts, of this request or others; return its new number of tokens."""
    left.begin([(source, length)], PLAIN_S)
    left.give([(source, drafted)])
    left.record(seconds, PLAIN_S, has_drafts=True)
    return length + 1 + right


def test_a_request_that_never_drafts_takes_at_most_its_share_longer_beside_others() -> None:
    """Each of its steps is as long as it may be."""
    left, source, length, spent_s = TimeLeft(), _source(), 5, 0.0
    for _ in range(1000):
        seconds = _limit_s(left, source, length)
        spent_s += seconds
        length = _step(left, source, length, 0, 0, seconds)
    assert spent_s <= MAX_STRETCH * 1000 * PLAIN_S + FIRST_S + 1e-9


def test_a_request_whose_drafts_were_right_can_wait_and_no_longer_than_they_saved() -> None:
    rng, left, source, length = random.Random(1), TimeLeft(), _source(), 5
    spent_s, allowed_s = 0.0, FIRST_S
    longest_s = 0.0
    for _ in range(1000):
        right = rng.choice([0, 0, 0, 12])
        seconds = rng.uniform(0, 10) * PLAIN_S if right else _limit_s(left, source, length)
        longest_s = max(longest_s, seconds)
        spent_s += seconds
        allowed_s += (1 + right) * MAX_STRETCH * PLAIN_S
        assert spent_s <= allowed_s + 1e-9
        length = _step(left, source, length, 12 if right else 0, right, seconds)
    assert longest_s > 20 * PLAIN_S
    assert longest_s <= (MAX_STRETCH + MAX_LEFT) * PLAIN_S


def test_the_request_with_the_least_time_left_decides() -> None:
    left, fast, slow = TimeLeft(), _source(), _source()
    left.begin([(fast, 5), (slow, 5)], PLAIN_S)
    left.give([(fast, 20), (slow, 0)])
    left.record(19 * PLAIN_S, PLAIN_S, has_drafts=True)
    left.begin([(fast, 26), (slow, 6)], PLAIN_S)
    assert abs(left.limit_s([slow], PLAIN_S) - MAX_STRETCH * PLAIN_S) < 1e-9
    assert left.limit_s([fast], PLAIN_S) > 50 * PLAIN_S
    assert left.limit_s([fast, slow], PLAIN_S) == left.limit_s([slow], PLAIN_S)


def test_tokens_of_steps_without_drafts_give_no_time() -> None:
    """Nor do they count as guesses that were right."""
    left, source, length = TimeLeft(), _source(), 5
    first_s = _limit_s(left, source, length)
    for _ in range(50):
        left.record(PLAIN_S, PLAIN_S, has_drafts=False)
    assert _limit_s(left, source, length + 50) == first_s
    length = _step(left, source, length + 50, 12, 0, MAX_STRETCH * PLAIN_S)
    for _ in range(12):
        left.record(PLAIN_S, PLAIN_S, has_drafts=False)
    assert _limit_s(left, source, length + 12) == first_s


def test_what_a_request_took_too_much_is_given_back_by_steps_without_drafts_and_not_forgotten() -> None:
    left, source, length = TimeLeft(), _source(), 5
    length = _step(left, source, length, 12, 0, 40 * PLAIN_S)
    debt_s = MAX_STRETCH * PLAIN_S - _limit_s(left, source, length)
    assert abs(debt_s - (37 * PLAIN_S - FIRST_S)) < 1e-9
    left.begin([], PLAIN_S)
    assert MAX_STRETCH * PLAIN_S - _limit_s(left, source, length) == debt_s, "it was absent for one step"
    for number in range(11):
        left.record(PLAIN_S, PLAIN_S, has_drafts=False)
        assert _limit_s(left, source, length + number + 1) <= MAX_STRETCH * PLAIN_S + 1e-9
    assert abs(_limit_s(left, source, length + 11) - MAX_STRETCH * PLAIN_S) < 1e-9
