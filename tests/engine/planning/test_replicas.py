"""engine/planning/replicas.py: the search gives what trying every number gives."""

import pytest

from engine.planning.replicas import ALONE, Limits, Simulate, fewest_replicas, percentile
from engine.planning.virtual_engine import Timeline

LIMITS = Limits(ttft_s=1.0, gap_s=0.1)


def load(needed: dict[int, int], alone_s: float = 0.01) -> Simulate:
    """Return a simulation in which a token budget needs so many replicas."""

    def simulate(num_replicas: int, budget: int) -> Timeline:
        gap_s = alone_s if num_replicas == ALONE else 0.05 if num_replicas >= needed[budget] else 0.2
        return Timeline([0.5] * 10, [gap_s] * 10, end_s=2.0, num_tokens=20)

    return simulate


@pytest.mark.parametrize("needed", [*range(1, 40), 1000, 4096])
def test_the_fewest_replicas_keep_the_limits_and_one_less_does_not(needed: int) -> None:
    answer = fewest_replicas(load({64: needed}), [64], LIMITS)
    assert answer.best is not None and answer.best.num_replicas == needed and answer.best.keeps(LIMITS)
    assert (answer.one_less is None) == (needed == 1)
    if answer.one_less is not None:
        assert answer.one_less.num_replicas == needed - 1 and not answer.one_less.keeps(LIMITS)


@pytest.mark.parametrize("first", range(1, 12))
@pytest.mark.parametrize("second", range(1, 12))
def test_of_two_budgets_the_one_with_fewer_replicas_is_chosen_and_of_equals_the_first(first: int, second: int) -> None:
    best = fewest_replicas(load({64: first, 32: second}), [64, 32], LIMITS).best
    assert best is not None
    assert (best.num_replicas, best.max_num_batched_tokens) == min((first, 64), (second, 32), key=lambda item: item[0])


def test_no_number_is_enough_if_a_request_alone_is_too_slow_or_there_are_too_many() -> None:
    answer = fewest_replicas(load({64: 1}, alone_s=0.3), [64], LIMITS)
    assert answer.best is None and answer.alone.gap_p99_s == 0.3
    assert fewest_replicas(load({64: 5000}), [64], LIMITS).best is None


def test_an_overloaded_engine_keeps_no_limits() -> None:
    answer = fewest_replicas(lambda *_: Timeline(is_overloaded=True), [64], LIMITS)
    assert answer.best is None


def test_percentiles_are_values_of_the_list_by_nearest_rank() -> None:
    values = [float(number) for number in range(1, 201)]
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (100.0, 198.0, 200.0)
    assert (percentile([7.0], 99), percentile([], 99)) == (7.0, 0.0)
