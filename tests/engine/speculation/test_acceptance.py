"""Accepted tokens of a draft, and the learned rates."""

import random

import pytest

from engine.speculation.acceptance import AcceptanceRates, Evidence, Ground, num_accepted

EVIDENCE, OTHER = Evidence(4, True, False), Evidence(4, False, False)


@pytest.mark.parametrize(
    ("draft", "sampled", "count"),
    [((5, 6, 7), (5, 6, 7, 8), 3), ((5, 6, 7), (5, 6, 8, 7), 2), ((5, 6), (4, 6, 6), 0), ((), (4,), 0)],
)
def test_a_draft_counts_until_its_first_wrong_token(
    draft: tuple[int, ...], sampled: tuple[int, ...], count: int
) -> None:
    assert num_accepted(draft, sampled) == count


def test_a_rate_follows_what_happens_and_drafts_of_other_evidence_keep_theirs() -> None:
    rates, rng = AcceptanceRates(), random.Random(0)
    before = rates.rate(OTHER, 0)
    for probability in (0.9, 0.2):
        for _ in range(1000):
            rates.record(EVIDENCE, 0, is_right=rng.random() < probability)
        assert rates.rate(EVIDENCE, 0) == pytest.approx(probability, abs=0.1)
    assert rates.rate(OTHER, 0) == before == 0.25


def test_later_places_of_a_draft_have_rates_of_their_own() -> None:
    rates = AcceptanceRates()
    for _ in range(50):
        rates.record(EVIDENCE, 5, is_right=True)
    assert rates.rate(EVIDENCE, 0) == 0.25
    assert rates.rate(EVIDENCE, 4) == rates.rate(EVIDENCE, 7) > 0.9


def test_the_chance_of_a_token_is_that_of_all_before_it_and_its_own() -> None:
    rates = AcceptanceRates()
    for is_right in (True, True, False):
        rates.record(EVIDENCE, 0, is_right=is_right)
    first = (0.25 + 2) / (1 + 3)
    assert rates.chances([Ground(EVIDENCE, 0), Ground(OTHER, 1)]) == pytest.approx((first, first * 0.25))


def test_a_draft_without_room_for_a_token_has_no_chances() -> None:
    """The draft of a request that has one token left: behind it nothing is sampled."""
    assert AcceptanceRates().chances([]) == ()


def test_a_rate_never_reaches_1() -> None:
    rates = AcceptanceRates()
    for _ in range(100_000):
        rates.record(EVIDENCE, 0, is_right=True)
    assert 0.99 < rates.rate(EVIDENCE, 0) < 1 - 1 / 2000
