"""Estimated times of steps by their rows."""

import pytest

from engine.speculation.row_times import MIN_STEPS, RowTimes, last_in_group, time_shape


def test_the_shape_of_a_mixture_grows_fast_at_first_and_that_of_a_dense_network_does_not() -> None:
    mixture, dense = time_shape(8, 2), time_shape(0, 0)
    assert mixture(2) / mixture(1) == pytest.approx(1.6, abs=0.1)  # 8 (1 - 0.75^2) / 2 = 1.75 times the experts
    assert (mixture(33) - mixture(32)) / mixture(1) < 0.05
    assert dense(2) / dense(1) < 1.05


def test_an_estimate_moves_towards_what_is_measured() -> None:
    times = RowTimes(time_shape(8, 2))
    times.record(1, 0.010)
    assert times.predict(1) == 0.010
    for _ in range(25):
        times.record(1, 0.020)
    assert times.predict(1) == pytest.approx(0.020, rel=0.01)


def test_of_the_first_steps_the_fastest_counts() -> None:
    times = RowTimes(time_shape(8, 2))
    for seconds in (0.050, 0.010, 0.030):
        times.record(1, seconds)
    assert times.predict(1) == 0.010


def test_one_slow_step_moves_an_estimate_little() -> None:
    times = RowTimes(time_shape(8, 2))
    for _ in range(MIN_STEPS):
        times.record(4, 0.010)
    times.record(4, 10.0)
    assert times.predict(4) == 0.010
    times.record(4, 10.0)
    assert 0.010 < times.predict(4) <= 0.0126


def test_rows_that_were_not_measured_follow_the_shape_from_the_nearest_that_were() -> None:
    shape = time_shape(8, 2)
    times = RowTimes(shape)
    times.record(2, 3 * shape(2))
    assert times.predict(5) == pytest.approx(3 * shape(5)) and not times.is_measured(5)
    times.record(8, 5 * shape(8))
    assert times.predict(5) == pytest.approx(4 * shape(5))
    assert times.predict(100) == pytest.approx(5 * shape(100))


def test_a_number_of_rows_counts_as_measured_after_a_few_steps() -> None:
    times = RowTimes(time_shape(8, 2))
    for number in range(MIN_STEPS):
        assert not times.is_measured(2) and times.is_known == (number > 0)
        times.record(2, 0.01)
    assert times.is_measured(2) and not times.is_measured(3)


def test_rows_near_a_measured_number_count_as_measured_too() -> None:
    times = RowTimes(time_shape(8, 2))
    for _ in range(MIN_STEPS):
        times.record(16, 0.01)
    assert [rows for rows in range(1, 30) if times.is_measured(rows)] == list(range(13, 22))


def test_the_groups_cover_all_numbers_of_rows() -> None:
    ends = sorted({last_in_group(rows) for rows in range(1, 400)})
    assert ends[:18] == [*range(1, 17), 24, 32] and ends[-2:] == [384, 400]
    assert all(last_in_group(end) == end for end in ends)
