"""The scheduler and its block tables, promise by promise. Under random load and faults: tests/simulator."""

import random

import pytest

from engine.errors import RequestRejectedError
from engine.scheduling.deadlines import MIN_PRUNED
from engine.scheduling.step_plan import RowFailed
from engine.types import Request, SamplingParams
from tests.measure.scheduler import VOCAB, Bench, random_prompt
from tests.simulator.exact import oracle, root_of


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
        assert plan.num_tokens == bench.budget, "the prompt takes what is left"


@pytest.mark.parametrize("window", [3, 16, 17])
@pytest.mark.parametrize("budget", [5, 64])
def test_a_window_bounds_the_blocks_a_sequence_holds(window: int, budget: int) -> None:
    bench = Bench(num_blocks=64, block_size=4, window=window, budget=budget, max_model_len=400)
    request_id = bench.add(random_prompt(random.Random(0), 200, 200), 190)
    most = -(-window // 4) + 1
    while bench.scheduler.has_work():
        sequence = bench.scheduler.requests.unfinished[request_id]
        plan = bench.scheduler.plan(0.0)
        held = sum(1 for block_id in sequence.block_table if block_id)
        assert held <= most + -(-plan.chunks[0].length // 4)
        bench.apply(plan, bench.runner.run(plan))
        if request_id in bench.scheduler.requests.unfinished:
            assert sum(1 for block_id in sequence.block_table if block_id) <= most
    assert bench.tokens[request_id] == bench.expected(request_id)
    bench.assert_idle()


def test_a_repeated_prompt_is_taken_from_the_prefix_cache() -> None:
    bench = Bench()
    prompt = random_prompt(random.Random(0), 21, 21)
    bench.add(prompt, 4)
    bench.run()
    again = bench.add(prompt, 4)
    plan = bench.step()
    assert plan.num_prefix_hits == 20  # five full blocks of 4; the last token is computed for its logits
    bench.run()
    assert bench.tokens[again] == bench.expected(again)


def test_a_prefix_is_not_shared_across_salts() -> None:
    bench = Bench()
    prompt = random_prompt(random.Random(0), 21, 21)
    bench.add(prompt, 4, salt="a")
    bench.run()
    bench.add(prompt, 4, salt="b")
    assert bench.step().num_prefix_hits == 0
    bench.run()


def test_under_a_window_a_hit_needs_only_the_blocks_still_visible() -> None:
    bench = Bench(num_blocks=12, window=8, budget=4, max_model_len=200)
    prompt = random_prompt(random.Random(0), 61, 61)
    bench.add(prompt, 1)
    bench.run()
    early = bench.block_manager.pool.lookup(bench_key(bench, prompt, 0), tuple(prompt[:4]))
    assert early is None, "the first block should have been reused by now"
    again = bench.add(prompt, 6)
    assert bench.step().num_prefix_hits == 60
    bench.run()
    assert bench.tokens[again] == bench.expected(again)


def bench_key(bench: Bench, prompt: list[int], index: int) -> bytes:
    from engine.scheduling.sequence import Sequence

    return Sequence(Request(0, prompt, SamplingParams()), (0, 0), 1).block_hash(index, bench.block_size)


def test_a_request_that_can_never_fit_is_refused_and_the_largest_that_can_is_served() -> None:
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


def test_a_request_ends_at_an_end_token_and_reports_which() -> None:
    prompt = [5, 6, 7]
    tokens = oracle(root_of(Request(0, prompt, SamplingParams())), prompt, 12, None, VOCAB)
    bench = Bench(eos=(tokens[5],))
    request_id = bench.add(prompt, 12)
    bench.run()
    assert bench.tokens[request_id] == tokens[: tokens.index(tokens[5]) + 1]
    assert bench.finished[request_id] == "stop"


def test_a_failed_row_ends_its_request_alone() -> None:
    bench = Bench()
    good, bad = bench.add([1, 2, 3], 10), bench.add([4, 5, 6], 10)
    bench.step()
    plan = bench.scheduler.plan(9.0)
    result = bench.runner.run(plan)
    result.sampled[bad] = RowFailed("no finite logits")
    bench.apply(plan, result)
    bench.run()
    assert bench.finished == {bad: "error", good: "length"}
    assert bench.tokens[good] == bench.expected(good)


@pytest.mark.parametrize("window", [None, 6])
def test_what_a_failed_row_computed_is_never_a_prefix_hit(window: int | None) -> None:
    """The NaN that its logits showed may stand in the K and V of any of its positions, those of earlier steps too."""
    bench = Bench(window=window, budget=12)
    prompt = random_prompt(random.Random(5), 30, 30)
    bad = bench.add(prompt)
    while bad not in bench.finished:
        plan = bench.scheduler.plan(9.0)
        result = bench.runner.run(plan)
        if bad in result.sampled:
            result.sampled[bad] = RowFailed("no finite logits")
        bench.apply(plan, result)
    again = bench.add(prompt)
    bench.run()
    assert sum(plan.num_prefix_hits for plan in bench.plans) == 0
    assert bench.tokens[again] == bench.expected(again)


def test_planning_one_step_ahead_gives_the_same_tokens() -> None:
    outcomes = []
    for ahead in (False, True):
        bench = Bench(num_blocks=14, budget=9, window=8, ahead=ahead, max_model_len=200)
        for i in range(6):
            bench.add(random_prompt(random.Random(i), 1, 30), 15)
        bench.run()
        outcomes.append(bench.tokens)
    assert outcomes[0] == outcomes[1]


def test_a_request_whose_time_in_the_queue_is_over_is_never_computed() -> None:
    bench = Bench(max_num_seqs=1)
    first = bench.add([1, 2, 3], max_tokens=6, queue_steps=2)
    second = bench.add([4, 5], max_tokens=2, queue_steps=3)
    third = bench.add([6, 7], max_tokens=2)
    bench.run()
    assert bench.finished == {first: "length", second: "queue_timeout", third: "length"}
    assert all(chunk.sequence.request_id != second for plan in bench.plans for chunk in plan.chunks)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_request_whose_time_is_over_ends_with_its_blocks_free(ahead: bool) -> None:
    bench = Bench(budget=2, ahead=ahead)
    in_prefill = bench.add([1] * 9, steps=3)
    in_decode = bench.add([2], max_tokens=50, steps=12)
    bench.add([3], max_tokens=30)
    bench.run()
    assert bench.finished == {in_prefill: "timeout", in_decode: "timeout", 2: "length"}
    assert bench.tokens[in_decode] == bench.expected(in_decode)[: len(bench.tokens[in_decode])] != []
    assert not bench.tokens[in_prefill]


def test_deadlines_of_requests_long_gone_take_no_room() -> None:
    bench = Bench()
    for _ in range(1000):
        bench.add([1], max_tokens=1, steps=1e9, queue_steps=1e9)
        bench.run()
    assert len(bench.scheduler.requests._deadlines) <= 2 * MIN_PRUNED


def test_a_block_that_a_failed_request_shared_is_scrubbed_when_its_last_holder_lets_go() -> None:
    bench = Bench(budget=9)
    prompt = random_prompt(random.Random(0), 9, 9)
    bench.add(prompt, 1)
    bench.run()
    bad, other = bench.add(prompt), bench.add(prompt)
    plan = bench.scheduler.plan(9.0)
    shared = set(bench.scheduler.requests.unfinished[bad].block_table) & set(
        bench.scheduler.requests.unfinished[other].block_table
    )
    assert len(shared) == 2
    result = bench.runner.run(plan)
    result.sampled[bad] = RowFailed("no finite logits")
    bench.apply(plan, result)
    plan = bench.scheduler.plan(10.0)
    assert plan.blocks_to_zero and not set(plan.blocks_to_zero) & shared, "only what nobody holds may be scrubbed"
    result = bench.runner.run(plan)
    bench.scheduler.abort(other)
    bench.add([1, 2, 3])
    assert not bench.scheduler.plan(11.0).blocks_to_zero, "the step in flight still uses them"
    bench.apply(plan, result)
    bench.add([4, 5, 6])
    assert set(bench.scheduler.plan(12.0).blocks_to_zero) == shared


def test_blocks_to_scrub_wait_for_a_step_that_computes_something() -> None:
    bench = Bench()
    bad = bench.add([1, 2, 3, 4, 5])
    plan = bench.scheduler.plan(9.0)
    blocks = set(bench.scheduler.requests.unfinished[bad].block_table)
    result = bench.runner.run(plan)
    result.sampled[bad] = RowFailed("no finite logits")
    bench.apply(plan, result)
    assert not bench.scheduler.plan(10.0).blocks_to_zero
    bench.add([6])
    assert set(bench.scheduler.plan(11.0).blocks_to_zero) == blocks
    assert not bench.scheduler.plan(12.0).blocks_to_zero
