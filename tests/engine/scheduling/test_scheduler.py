"""Promises of the scheduler. Under random load and faults: tests/simulator."""

import random

import pytest

from engine.errors import RequestRejectedError
from tests.support.scheduler_bench import Bench, random_prompt


def test_a_preempted_request_gives_the_same_tokens() -> None:
    bench = Bench(num_blocks=9, budget=64)
    ids = [bench.add(random_prompt(random.Random(i), 10, 10), 20) for i in range(3)]
    bench.run()
    assert sum(plan.num_preemptions for plan in bench.plans) > 0
    assert all(bench.tokens[i] == bench.expected(i) for i in ids)


def test_the_first_request_is_never_preempted() -> None:
    bench = Bench(num_blocks=9, budget=64)
    first = bench.add(random_prompt(random.Random(1), 8, 8), 25)
    for i in range(4):
        bench.add(random_prompt(random.Random(i), 8, 8), 25)
    sequence = bench.scheduler.requests.unfinished[first]
    bench.run()
    assert sequence.num_preemptions == 0
    assert sum(plan.num_preemptions for plan in bench.plans) > 0


def test_a_long_prompt_never_stops_those_that_decode() -> None:
    bench = Bench(num_blocks=400, budget=16)
    decoding = [bench.add([i + 1], 40) for i in range(4)]
    for _ in range(3):
        bench.step()
    bench.add(random_prompt(random.Random(0), 300, 300), 4)
    for _ in range(20):
        plan = bench.step()
        assert {c.sequence.request_id for c in plan.chunks} >= set(decoding)
        assert plan.num_tokens == bench.budget, "the prompt gets the rest of the budget"


def test_a_request_that_can_never_fit_is_rejected_and_the_largest_that_fits_is_served() -> None:
    bench = Bench(num_blocks=5, budget=64)
    assert bench.scheduler.max_model_len == 20
    with pytest.raises(RequestRejectedError, match="20 tokens; this server takes 1 to 19"):
        bench.add([1] * 20, 1)
    largest = bench.add([1] * 19, 5)
    bench.run()
    assert len(bench.tokens[largest]) == 1  # the context ends there
    assert bench.finished[largest] == "length"


def test_lower_priority_values_run_first_and_ties_go_by_arrival() -> None:
    bench = Bench(max_num_seqs=1)
    late, first, second = bench.add([1], 2, priority=5), bench.add([2], 2), bench.add([3], 2)
    bench.run()
    assert list(bench.finished) == [first, second, late]


def test_planning_one_step_ahead_gives_the_same_tokens() -> None:
    outcomes = []
    for ahead in (False, True):
        bench = Bench(num_blocks=14, budget=9, window=8, ahead=ahead, max_model_len=200)
        for i in range(6):
            bench.add(random_prompt(random.Random(i), 1, 30), 15)
        bench.run()
        outcomes.append(bench.tokens)
    assert outcomes[0] == outcomes[1]
