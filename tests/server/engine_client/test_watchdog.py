"""The watchdog with a clock of its own: what it sees of an engine that stands still, and what it leaves alone."""

import random

import pytest

from engine.heartbeat import Heartbeat
from server.engine_client.watchdog import Watchdog, WatchdogTimeouts

PATIENCE = WatchdogTimeouts()
IDLE_BEAT_S = 0.5  # engine/process.py


def stands_still(stop_s: float, resume_s: float, phase_s: float) -> list[tuple[float, float]]:
    """(moment, seconds seen) of each look at an idle engine that is stopped between two moments."""
    watchdog, looks = Watchdog(0.0), []
    for number in range(1, 400):
        now_s = number * PATIENCE.look_s
        beating_s = min(now_s, stop_s) + max(0.0, now_s - resume_s)
        looks.append((now_s, watchdog.observe(1 + int((beating_s + phase_s) / IDLE_BEAT_S), now_s)))
    return looks


@pytest.mark.parametrize("seed", range(20))
def test_a_stop_is_seen_within_ten_seconds_and_never_before_eight(seed: int) -> None:
    chance = random.Random(seed)
    stop_s = chance.uniform(5, 20)
    seen_s = [at for at, still in stands_still(stop_s, 1e9, chance.random()) if still >= PATIENCE.stuck_after_s]
    assert stop_s + 8 < seen_s[0] <= stop_s + 10


@pytest.mark.parametrize("seed", range(20))
def test_a_pause_of_eight_seconds_is_no_alarm(seed: int) -> None:
    chance = random.Random(seed)
    stop_s = chance.uniform(5, 20)
    assert max(s for _, s in stands_still(stop_s, stop_s + 8, chance.random())) < PATIENCE.stuck_after_s


def test_a_step_that_honestly_takes_half_a_minute_is_none_either() -> None:
    """32 layers of a second each, which is a full step of the 8x7B on two cores."""
    watchdog = Watchdog(0.0)
    assert max(watchdog.observe(1 + int(now_s), now_s) for now_s in (0.25 * n for n in range(128))) <= 1.0


def test_it_is_over_with_the_first_sign_of_life() -> None:
    looks = stands_still(10, 40, 0.0)
    assert max(still for _, still in looks) > 29
    assert max(still for at, still in looks if at > 41) <= 1.0


def test_who_was_stopped_itself_has_not_watched() -> None:
    """A machine that is suspended for an hour stops both processes: nobody is to be killed for that."""
    watchdog = Watchdog(0.0)
    watchdog.observe(5, 0.25)
    assert watchdog.observe(5, 3600.0) <= 1.0


def test_an_engine_that_keeps_no_counter_is_not_judged() -> None:
    watchdog = Watchdog(0.0)
    assert max(watchdog.observe(0, now_s) for now_s in range(1000)) == 0.0


def test_the_counter_is_shared_and_does_not_overflow() -> None:
    ours = Heartbeat()
    theirs = Heartbeat(ours.fd)
    assert ours.count == theirs.count == 0
    theirs.beat()
    assert ours.count == 1
    theirs.counter.value = 2**64 - 1
    theirs.beat()
    assert ours.count == 0
