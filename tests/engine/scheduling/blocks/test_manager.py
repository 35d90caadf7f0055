"""Block tables: prefix hits, the sliding window, and the blocks of failed requests."""

import random
from unittest.mock import patch

import pytest

from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import RowFailed
from engine.types import Request, SamplingParams
from tests.support.scheduler_bench import Bench, random_prompt


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


@pytest.mark.parametrize("window", [1, 3, 4, 5, 16, 17, 40])
def test_the_longest_visible_prefix_is_that_of_trying_each_length(window: int) -> None:
    rng = random.Random(window)
    manager = Bench(num_blocks=64, block_size=4, window=window).block_manager
    for _ in range(200):
        found = [rng.choice([0, *range(1, 9)]) for _ in range(rng.randrange(12))]
        expected: list[int] = []
        for count in range(1, len(found) + 1):
            first = manager.geometry.first_visible_block(4 * count)
            if all(found[first:count]):
                expected = [0] * first + found[first:count]
        assert manager._longest_visible(found) == expected


def test_a_prefix_is_looked_up_once() -> None:
    bench = Bench()
    prompt = random_prompt(random.Random(0), 21, 21)
    bench.add(prompt, 4)
    bench.run()
    lookups: list[object] = []
    pool = bench.block_manager.pool
    with patch.object(pool, "lookup", side_effect=lambda *key: lookups.append(key) or type(pool).lookup(pool, *key)):
        assert len(bench.block_manager.find_prefix(Sequence(Request(9, prompt, SamplingParams()), (0, 9), 4))) == 5
    assert len(lookups) == 5


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
    early = bench.block_manager.pool.lookup(_first_block_hash(bench, prompt), tuple(prompt[:4]))
    assert early is None, "the first block should have been reused by now"
    again = bench.add(prompt, 6)
    assert bench.step().num_prefix_hits == 60
    bench.run()
    assert bench.tokens[again] == bench.expected(again)


def _first_block_hash(bench: Bench, prompt: list[int]) -> bytes:
    return Sequence(Request(0, prompt, SamplingParams()), (0, 0), 1).block_hash(0, bench.block_size)


@pytest.mark.parametrize("window", [None, 6])
def test_what_a_failed_row_computed_is_never_a_prefix_hit(window: int | None) -> None:
    """Any of its positions, those of earlier steps too, may be the source of the NaN in its logits."""
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


def test_a_block_shared_with_a_failed_request_is_zeroed_when_its_last_holder_ends() -> None:
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
    assert plan.blocks_to_zero and not set(plan.blocks_to_zero) & shared, (
        "only blocks that no request holds may be zeroed"
    )
    result = bench.runner.run(plan)
    bench.scheduler.abort(other)
    bench.add([1, 2, 3])
    assert not bench.scheduler.plan(11.0).blocks_to_zero, "the step in flight still uses them"
    bench.apply(plan, result)
    bench.add([4, 5, 6])
    assert set(bench.scheduler.plan(12.0).blocks_to_zero) == shared


def test_blocks_to_zero_wait_for_a_step_that_computes_something() -> None:
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
