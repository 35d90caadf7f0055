"""The account that bounds the time lost by drafts."""

import pytest

from engine.speculation.ledger import MIN_PAUSE, Ledger


def test_drafts_that_always_lose_cost_a_fiftieth_of_the_time_at_most() -> None:
    ledger, lost_s, spent_s = Ledger(max_loss=0.02), 0.0, 0.0
    for _ in range(20_000):
        seconds = 0.01
        if ledger.allows_drafts:
            lost_s += 0.01
            seconds = 0.02
            ledger.record(seconds, -0.01)
        else:
            ledger.record(seconds)
        spent_s += seconds
    assert 0 < lost_s < 0.025 * spent_s


def test_old_gains_pay_for_few_losses() -> None:
    ledger = Ledger(max_loss=0.02)
    for _ in range(1000):
        ledger.record(0.01, 0.05)
    num_losses = 0
    while ledger.allows_drafts:
        ledger.record(0.01, -0.01)
        num_losses += 1
    assert num_losses < 40


def test_what_drafts_that_always_lose_cost_falls_with_time() -> None:
    ledger, losses = Ledger(max_loss=0.01), [0, 0]
    for step in range(20_000):
        if ledger.allows_drafts:
            losses[step // 10_000] += 1
            ledger.record(2.0, -1.0)
        else:
            ledger.record(1.0)
    assert losses[1] < 0.006 * 10_000 and losses[1] < losses[0] < 0.012 * 10_000


def test_a_new_text_ends_a_pause_and_a_gain_makes_the_next_one_short() -> None:
    ledger = Ledger()
    ledger.record(1.0, -3.1)
    ledger.end_pause()
    assert not ledger.allows_drafts, "the loss is not within its bound yet"
    ledger.skip(20, 1.0)
    assert not ledger.allows_drafts
    ledger.end_pause()
    assert ledger.allows_drafts
    ledger.record(1.0, -1.0)
    ledger.skip(ledger.num_left, 1.0)
    pauses = []
    for gain_s in (0.0, 9.0):
        ledger.record(1.0, gain_s)
        while ledger.allows_drafts:
            ledger.record(1.0, -0.1)
        pause = 0
        while not ledger.allows_drafts:
            ledger.record(1.0)
            pause += 1
        pauses.append(pause)
    assert pauses[1] == MIN_PAUSE < pauses[0]


@pytest.mark.parametrize("num_steps", [MIN_PAUSE - 1, MIN_PAUSE])
def test_skipped_steps_of_a_pause_count_as_if_each_was_recorded(num_steps: int) -> None:
    one_by_one, at_once = Ledger(), Ledger()
    for ledger in (one_by_one, at_once):
        ledger.record(1.0, -6.0)
    for _ in range(num_steps):
        one_by_one.record(1.0)
    at_once.skip(num_steps, 1.0)
    assert at_once._spent_s == pytest.approx(one_by_one._spent_s)
    assert at_once._saved_s == pytest.approx(one_by_one._saved_s)
    assert one_by_one.allows_drafts == at_once.allows_drafts == (num_steps == MIN_PAUSE)


def test_behind_a_pause_drafts_get_another_try_however_large_the_loss_was() -> None:
    ledger = Ledger()
    ledger.record(1.0, -100.0)
    ledger.skip(MIN_PAUSE, 1.0)
    ledger.record(1.1, -0.1)
    assert ledger.allows_drafts


def test_new_texts_neither_end_a_pause_for_good_nor_make_the_next_one_longer() -> None:
    ledger = Ledger()
    ledger.record(1.0, -100.0)
    for _ in range(10):
        ledger.end_pause()
        ledger.record(1.1, -0.1)
        assert not ledger.allows_drafts
    ledger.skip(ledger.num_left, 1.0)
    ledger.record(1.0, -10.0)
    assert ledger.num_left == 2 * MIN_PAUSE
