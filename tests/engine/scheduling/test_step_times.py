"""The estimate of a step's time, against times made by a formula."""

import random

import pytest

from engine.scheduling.step_times import NO_WORK, StepTimes, StepWork


def seconds(work: StepWork, speed: float = 1.0) -> float:
    """A machine: 5 ms for each step, 50 us for each chunk, 30 us for each position, 20 us for each scored one."""
    return (5e-3 + 50e-6 * work.num_chunks + 30e-6 * work.num_positions + 20e-6 * work.num_scored) / speed


DECODE, PROMPTS, SCORED = StepWork(128, 128, 0), StepWork(2, 2048, 0), StepWork(3, 2048, 2048)


@pytest.mark.parametrize("kind", [DECODE, PROMPTS, SCORED])
def test_eight_steps_of_one_kind_are_enough_to_predict_it(kind: StepWork) -> None:
    times = StepTimes()
    for _ in range(8):
        times.record(kind, seconds(kind))
    assert times.predict(kind) == pytest.approx(seconds(kind), rel=0.02)


@pytest.mark.parametrize("speed", [0.2, 5.0])
def test_the_estimate_follows_a_machine_that_becomes_slower_or_faster(speed: float) -> None:
    times = StepTimes()
    for _ in range(50):
        times.record(PROMPTS, seconds(PROMPTS))
    for _ in range(12):
        times.record(PROMPTS, seconds(PROMPTS, speed))
    assert times.predict(PROMPTS) == pytest.approx(seconds(PROMPTS, speed), rel=0.05)


def test_steps_of_all_sizes_give_the_cost_of_a_position() -> None:
    times, rng = StepTimes(), random.Random(0)
    for _ in range(2000):
        work = StepWork(rng.randint(1, 200), rng.randint(200, 2000), rng.choice((0, 200)))
        times.record(work, seconds(work))
    assert times.position_s(is_scored=False) == pytest.approx(30e-6, rel=0.05)
    assert times.position_s(is_scored=True) > times.position_s(is_scored=False)


def test_one_step_that_took_ten_times_as_long_does_not_make_prompts_stop() -> None:
    times = StepTimes()
    for _ in range(50):
        times.record(PROMPTS, seconds(PROMPTS))
    times.record(PROMPTS, 10 * seconds(PROMPTS))
    assert times.position_s(is_scored=False) < 6 * 30e-6


def test_no_coefficient_is_negative() -> None:
    """Steps with more work that took less time: a negative cost of a position would allow endless prompts."""
    times = StepTimes()
    for _ in range(20):
        times.record(DECODE, 0.2)
        times.record(PROMPTS, 0.001)
    assert times.chunk_s >= 0 and times.position_s(is_scored=False) >= 0 and times.predict(NO_WORK) >= 0


def test_nothing_is_predicted_before_the_first_step() -> None:
    assert StepTimes().predict(PROMPTS) == 0
