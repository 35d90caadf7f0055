"""Time that requests have left for the drafts of others."""

import random

from engine.speculation.acceptance import AcceptanceRates
from engine.speculation.draft_source import DraftSource
from engine.speculation.time_left import FIRST_LEFT, FIRST_LEFT_S, MAX_LEFT, MAX_STRETCH, TimeLeft

PLAIN_S = 0.01


def _source() -> DraftSource:
    return DraftSource(1, AcceptanceRates())


def _step(left: TimeLeft, source: DraftSource, length: int, drafted: int, right: int, seconds: float) -> int:
    """Run one step of a request; return its new number of tokens."""
    left.begin([(source, length)], PLAIN_S)
    left.give([(source, length, drafted)])
    left.record(seconds)
    return length + 1 + right


def test_a_request_that_never_drafts_takes_at_most_its_share_longer_beside_others() -> None:
    """Each of its steps is as long as it may be."""
    left, source, length, spent_s = TimeLeft(), _source(), 5, 0.0
    for _ in range(1000):
        left.begin([(source, length)], PLAIN_S)
        seconds = left.limit_s([source], PLAIN_S)
        spent_s += seconds
        length = _step(left, source, length, 0, 0, seconds)
    first_s = min(FIRST_LEFT * PLAIN_S, FIRST_LEFT_S)
    assert spent_s <= MAX_STRETCH * 1000 * PLAIN_S + first_s + 1e-9


def test_a_request_whose_drafts_were_right_can_wait_and_no_longer_than_they_saved() -> None:
    rng, left, source, length = random.Random(1), TimeLeft(), _source(), 5
    spent_s, allowed_s = 0.0, min(FIRST_LEFT * PLAIN_S, FIRST_LEFT_S)
    longest_s = 0.0
    for _ in range(1000):
        left.begin([(source, length)], PLAIN_S)
        right = rng.choice([0, 0, 0, 12])
        seconds = rng.uniform(0, 10) * PLAIN_S if right else left.limit_s([source], PLAIN_S)
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
    left.give([(fast, 5, 20), (slow, 5, 0)])
    left.record(100 * PLAIN_S)
    left.begin([(fast, 26), (slow, 6)], PLAIN_S)
    assert left.limit_s([slow], PLAIN_S) == MAX_STRETCH * PLAIN_S
    left.give([(fast, 26, 20), (slow, 6, 0)])
    left.record(10 * PLAIN_S)
    left.begin([(fast, 47), (slow, 7)], PLAIN_S)
    assert left.limit_s([fast], PLAIN_S) > left.limit_s([fast, slow], PLAIN_S) == MAX_STRETCH * PLAIN_S


def test_tokens_of_steps_without_drafts_give_no_time() -> None:
    left, source = TimeLeft(), _source()
    left.begin([(source, 5)], PLAIN_S)
    first_s = left.limit_s([source], PLAIN_S)
    left.give([(source, 5, 0)])
    left.begin([(source, 500)], PLAIN_S)
    assert left.limit_s([source], PLAIN_S) == first_s
