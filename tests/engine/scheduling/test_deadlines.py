"""Requests end when their deadline passes, in order of the deadlines."""

import random

import pytest

from engine.scheduling.deadlines import MIN_PRUNED, Deadlines
from engine.types import Request, SamplingParams
from tests.support.scheduler_bench import Bench


@pytest.mark.parametrize("seed", range(5))
def test_deadlines_expire_once_and_in_order(seed: int) -> None:
    """Against a sorted list."""
    rng = random.Random(seed)
    deadlines, expected = Deadlines(), []
    for request_id in range(200):
        queue_s, end_s = (rng.choice([None, float(rng.randrange(100))]) for _ in range(2))
        request = Request(request_id, [1], SamplingParams(), deadline_s=end_s, queue_deadline_s=queue_s)
        deadlines.add(request, range(200))
        if queue_s is not None:
            expected.append((queue_s, request_id, "queue_timeout"))
        if end_s is not None:
            expected.append((end_s, request_id, "timeout"))
    expired = []
    for now in range(0, 100, 7):
        expired += [(request_id, expiry) for request_id, expiry in deadlines.pop_expired(float(now))]
        assert expired == [(request_id, expiry) for moment, request_id, expiry in sorted(expected) if moment <= now]


def test_a_request_whose_queue_deadline_has_passed_is_never_computed() -> None:
    bench = Bench(max_num_seqs=1)
    first = bench.add([1, 2, 3], max_tokens=6, queue_steps=2)
    second = bench.add([4, 5], max_tokens=2, queue_steps=3)
    third = bench.add([6, 7], max_tokens=2)
    bench.run()
    assert bench.finished == {first: "length", second: "queue_timeout", third: "length"}
    assert all(chunk.sequence.request_id != second for plan in bench.plans for chunk in plan.chunks)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_request_whose_deadline_has_passed_ends_with_its_blocks_free(ahead: bool) -> None:
    bench = Bench(budget=2, ahead=ahead)
    in_prefill = bench.add([1] * 9, steps=3)
    in_decode = bench.add([2], max_tokens=50, steps=12)
    bench.add([3], max_tokens=30)
    bench.run()
    assert bench.finished == {in_prefill: "timeout", in_decode: "timeout", 2: "length"}
    assert bench.tokens[in_decode] == bench.expected(in_decode)[: len(bench.tokens[in_decode])] != []
    assert not bench.tokens[in_prefill]


def test_deadlines_of_finished_requests_take_no_room() -> None:
    bench = Bench()
    for _ in range(1000):
        bench.add([1], max_tokens=1, steps=1e9, queue_steps=1e9)
        bench.run()
    assert len(bench.scheduler.requests._deadlines) <= 2 * MIN_PRUNED
