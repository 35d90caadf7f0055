"""The account that bounds the time lost by drafts."""

from engine.speculation.ledger import Ledger


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
