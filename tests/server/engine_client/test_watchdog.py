"""server/engine_client/watchdog.py on a simulated clock: which engines count as stalled and which do not."""

import random

import pytest

from engine.heartbeat import Heartbeat
from server.engine_client.watchdog import DEFAULT_TIMEOUTS, Watchdog

TIMEOUTS = DEFAULT_TIMEOUTS
IDLE_BEAT_S = 0.5  # engine/process.py


def observations(stop_s: float, resume_s: float, phase_s: float) -> list[tuple[float, float]]:
    """Return (time, stalled seconds) per observation of an idle engine that is stopped from `stop_s` to `resume_s`."""
    watchdog, observed = Watchdog(0.0), []
    for number in range(1, 400):
        now_s = number * TIMEOUTS.observe_interval_s
        beating_s = min(now_s, stop_s) + max(0.0, now_s - resume_s)
        observed.append((now_s, watchdog.observe(1 + int((beating_s + phase_s) / IDLE_BEAT_S), now_s)))
    return observed


@pytest.mark.parametrize("seed", range(20))
def test_a_stop_is_seen_within_ten_seconds_and_never_before_eight(seed: int) -> None:
    chance = random.Random(seed)
    stop_s = chance.uniform(5, 20)
    seen_s = [at for at, stalled_s in observations(stop_s, 1e9, chance.random()) if stalled_s >= TIMEOUTS.stuck_after_s]
    assert stop_s + 8 < seen_s[0] <= stop_s + 10


@pytest.mark.parametrize("seed", range(20))
def test_a_pause_of_eight_seconds_is_no_alarm(seed: int) -> None:
    chance = random.Random(seed)
    stop_s = chance.uniform(5, 20)
    assert max(s for _, s in observations(stop_s, stop_s + 8, chance.random())) < TIMEOUTS.stuck_after_s


def test_a_step_of_half_a_minute_is_no_alarm() -> None:
    """A full step of the 8x7B on two cores: 32 layers of one second each."""
    watchdog = Watchdog(0.0)
    assert max(watchdog.observe(1 + int(now_s), now_s) for now_s in (0.25 * n for n in range(128))) <= 1.0


def test_the_first_progress_ends_the_stall() -> None:
    observed = observations(10, 40, 0.0)
    assert max(stalled_s for _, stalled_s in observed) > 29
    assert max(stalled_s for at, stalled_s in observed if at > 41) <= 1.0


def test_a_watcher_that_was_suspended_itself_counts_one_second_at_most() -> None:
    """A machine that is suspended for an hour stops both processes: the engine must not be killed for it."""
    watchdog = Watchdog(0.0)
    watchdog.observe(5, 0.25)
    assert watchdog.observe(5, 3600.0) <= 1.0


def test_an_engine_that_is_stopped_before_its_first_beat_stalls() -> None:
    """It would keep the server from starting another one for ever."""
    watchdog = Watchdog(0.0)
    assert max(watchdog.observe(0, now_s) for now_s in range(1000)) > 900


def test_the_counter_is_shared_and_does_not_overflow() -> None:
    ours = Heartbeat()
    theirs = Heartbeat(ours.fd)
    assert ours.count == theirs.count == 0
    theirs.beat()
    assert ours.count == 1
    theirs.counter.value = 2**64 - 1
    theirs.beat()
    assert ours.count == 0
