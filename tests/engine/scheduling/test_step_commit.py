"""Results of a step: tokens and ends reach their own requests, and a bad result ends one request only."""

import logging

import pytest

from engine.scheduling.step_commit import RESULT_FAILED
from engine.scheduling.step_plan import RowFailed
from engine.types import Request, SamplingParams, TokenLogprobs
from tests.simulator.exact import oracle, root_of
from tests.support.scheduler_bench import VOCAB, Bench


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


def test_a_request_ends_at_an_end_token_and_reports_which() -> None:
    prompt = [5, 6, 7]
    tokens = oracle(root_of(Request(0, prompt, SamplingParams())), prompt, 12, None, VOCAB)
    bench = Bench(eos=(tokens[5],))
    request_id = bench.add(prompt, 12)
    bench.run()
    assert bench.tokens[request_id] == tokens[: tokens.index(tokens[5]) + 1]
    assert bench.finished[request_id] == "stop"


def test_a_result_that_cannot_be_applied_ends_its_own_request(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bad, good = 7, bench.add([4, 5, 6], 10)
    bench.scheduler.add(Request(bad, [1, 2, 3], SamplingParams(), expert_usage=True))
    plan = bench.scheduler.plan(9.0)
    result = bench.runner.run(plan)
    result.expert_choices[bad] = []
    with caplog.at_level(logging.CRITICAL):
        outputs = bench.scheduler.apply(plan, result, 9.0)
    assert [(output.request_id, output.error) for output in outputs] == [(good, None), (bad, RESULT_FAILED)]
    assert list(bench.scheduler.requests.unfinished) == [good]
    bench.scheduler.check_integrity()


def test_prompt_logprobs_are_dropped_once_sent_and_not_collected_again_after_a_preemption() -> None:
    """With a budget of two positions the prompt, and what a preemption lets compute again, take several steps."""
    bench, scores = Bench(budget=2), [TokenLogprobs(2, -0.5, [], [])]
    bench.scheduler.add(Request(7, [1, 2, 3], SamplingParams(max_tokens=10, prompt_logprobs=True)))
    sequence = bench.scheduler.requests.unfinished[7]
    sent, kept = [], []
    for number in range(6):
        if number == 3:
            bench.scheduler.requests.preempt(sequence)
        plan = bench.scheduler.plan(9.0)
        result = bench.runner.run(plan)
        if plan.chunks[0].start < 3:
            result.prompt_logprobs[7] = scores
        sent += [output.prompt_logprobs for output in bench.scheduler.apply(plan, result, 9.0)]
        kept.append(len(sequence.prompt_logprobs))
    assert sequence.num_preemptions == 1
    assert sent == [scores * 2, None, None]
    assert kept == [1, 0, 0, 0, 0, 0]


def test_wrong_bookkeeping_is_no_fault_of_a_request() -> None:
    bench = Bench()
    request_id = bench.add([1, 2, 3, 4, 5])
    plan = bench.scheduler.plan(9.0)
    result = bench.runner.run(plan)
    bench.block_manager.pool.decref(bench.scheduler.requests.unfinished[request_id].block_table)
    with pytest.raises(AssertionError, match="only a held block"):
        bench.scheduler.apply(plan, result, 9.0)


def test_a_request_that_ends_with_a_step_in_flight_frees_its_blocks_after_it() -> None:
    bench = Bench()
    request_id = bench.add([1, 2, 3])
    plan = bench.scheduler.plan(9.0)
    result = bench.runner.run(plan)
    assert bench.scheduler.abort(request_id)
    assert bench.block_manager.pool.num_held == 1
    assert bench.scheduler.apply(plan, result, 9.0) == []
    assert bench.block_manager.pool.num_held == 0
