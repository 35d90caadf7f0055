"""Estimated times of steps with drafts."""

import random
from collections.abc import Callable

import pytest

from engine.speculation.draft_times import DraftTimes
from engine.speculation.row_times import time_shape

SHAPE = time_shape(8, 2)
SIZES = (17, 24, 40, 64, 100, 160, 256)


def _linear(num_rows: int) -> float:
    """Of a machine whose rows cost arithmetic: 0.05 ms each, behind 1.7 ms, and 0.6 ms more with drafts."""
    return 0.0017 + 0.00005 * num_rows + 0.0006 * (num_rows > 16)


def _reading(num_rows: int) -> float:
    """Of a machine whose rows read experts, and cost little else."""
    return 0.1 * SHAPE(num_rows)


def test_before_any_step_the_estimate_follows_the_shape() -> None:
    assert DraftTimes(SHAPE).predict(0.5, 4, 20) == pytest.approx(0.5 * SHAPE(20) / SHAPE(4))


@pytest.mark.parametrize(("seconds", "num_requests"), [(_linear, 16), (_reading, 1), (_reading, 16)])
def test_a_few_steps_of_some_sizes_are_enough_for_all_sizes(seconds: Callable[[int], float], num_requests: int) -> None:
    times, plain_s = DraftTimes(SHAPE), seconds(num_requests)
    for num_rows in (32, 60, 200, 120, 32, 60, 200, 32, 120, 24, 60, 200, 120, 40):
        times.record(plain_s, num_requests, num_rows, seconds(num_rows))
    for num_rows in SIZES:
        assert times.predict(plain_s, num_requests, num_rows) == pytest.approx(seconds(num_rows), rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_where_every_tenth_step_takes_three_times_as_long_the_estimate_stays_near(seed: int) -> None:
    rng, times, plain_s = random.Random(seed), DraftTimes(SHAPE), _linear(16)
    for _ in range(100):
        num_rows = rng.randint(20, 250)
        times.record(plain_s, 16, num_rows, _linear(num_rows) * rng.uniform(0.97, 1.03) * rng.choice([1] * 9 + [3]))
    for num_rows in SIZES[1:]:
        assert times.predict(plain_s, 16, num_rows) == pytest.approx(_linear(num_rows), rel=0.2)


def test_of_slow_steps_neither_the_first_of_a_size_counts_nor_one_alone() -> None:
    times, plain_s = DraftTimes(SHAPE), _linear(16)
    before = times.predict(plain_s, 16, 100)
    for num_rows in (24, 100, 250):
        times.record(plain_s, 16, num_rows, 10 * before)
        assert times.predict(plain_s, 16, 100) == pytest.approx(before)
    times.record(plain_s, 16, 100, 10 * before)
    assert times.predict(plain_s, 16, 100) == pytest.approx(before)
    times.record(plain_s, 16, 100, 10 * before)
    assert times.predict(plain_s, 16, 100) > 5 * before


def test_many_steps_of_one_size_leave_what_is_known_of_others() -> None:
    times, plain_s = DraftTimes(SHAPE), _linear(16)
    for num_rows in SIZES * 10:
        times.record(plain_s, 16, num_rows, _linear(num_rows))
    for _ in range(300):
        times.record(plain_s, 16, 256, _linear(256))
    assert times.predict(plain_s, 16, 24) == pytest.approx(_linear(24), rel=0.1)


def test_what_seems_too_slow_seems_faster_after_a_few_hundred_steps_without_it() -> None:
    times, plain_s = DraftTimes(SHAPE), _linear(16)
    first = times.predict(plain_s, 16, 100)
    for _ in range(30):
        times.record(plain_s, 16, 100, 10 * _linear(100))
    estimates = []
    for _ in range(500):
        times.fade(plain_s, 16)
        estimates.append(times.predict(plain_s, 16, 100))
    assert estimates[5] > 5 * _linear(100) and estimates[-1] < 1.5 * first
