"""Results of a step: tokens and ends reach their own requests, and a bad result ends one request only."""

import logging
import random
from typing import Any

import pytest

from engine.scheduling.step_commit import RESULT_FAILED
from engine.scheduling.step_plan import Chunk, RowFailed, Sampled, StepPlan, StepResult
from engine.types import Request, RequestOutput, SamplingParams, TokenLogprobs
from tests.simulator.exact import oracle, root_of
from tests.support.scheduler_bench import VOCAB, Bench, random_prompt


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


class OnlyGeneralPaths(Bench):
    """A bench whose plans and results take the paths that serve all chunks, and none for the next token alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        committer: Any = self.scheduler._committer
        self.block_manager.has_room = lambda sequence: False  # type: ignore[method-assign]
        committer._commit_next = lambda chunk, sampled, now: committer._commit_chunk(
            chunk, sampled, StepResult({chunk.sequence.request_id: sampled}), now
        )


def with_logprobs(bench: Bench, plan: StepPlan) -> StepResult:
    """Return the results of a step, with the log probabilities that its requests ask for."""
    result = bench.runner.run(plan)
    for request_id, sampled in result.sampled.items():
        if isinstance(sampled, Sampled) and bench.requests[request_id].params.num_logprobs is not None:
            score = TokenLogprobs(sampled.token_id, -1.0 / (1 + sampled.token_id), [], [])
            result.sampled[request_id] = Sampled(sampled.token_id, score)
    return result


def fields_of(plan: StepPlan) -> list[tuple[object, ...]]:
    def of_chunk(chunk: Chunk) -> tuple[object, ...]:
        return chunk.sequence.request_id, chunk.start, chunk.length, chunk.samples, chunk.is_prefill, chunk.draft

    return [*map(of_chunk, plan.chunks), (plan.num_preemptions, plan.num_prefix_hits, plan.work, plan.num_tokens)]


def one_step(bench: Bench) -> tuple[list[tuple[object, ...]], list[RequestOutput]]:
    """Run a step, planned while the one before it is in flight. Return its plan, and the outputs of that one."""
    plan, outputs = bench.scheduler.plan(9.0), []
    if plan.chunks:
        bench.in_flight.append((plan, with_logprobs(bench, plan)))
    while len(bench.in_flight) > bool(plan.chunks):
        outputs += bench.scheduler.apply(*bench.in_flight.pop(0), 9.0)
    bench.scheduler.check_integrity()
    return fields_of(plan), outputs


def random_params(rng: random.Random) -> dict[str, Any]:
    return {
        "max_tokens": rng.choice([1, 2, 9, 30]),
        "stop_token_ids": rng.sample(range(VOCAB), rng.choice([0, 10])),
        "min_tokens": rng.choice([0, 0, 5]),
        "num_logprobs": rng.choice([None, 0]),
    }


@pytest.mark.parametrize("window", [None, 12])
def test_the_path_of_the_next_token_gives_what_the_general_one_gives(window: int | None, scale: int) -> None:
    """With prefix hits, end tokens and log probabilities; without a window there are too few blocks."""
    for seed in range(3 * scale):
        compare_paths(random.Random(seed), window)


def compare_paths(rng: random.Random, window: int | None) -> None:
    num_preemptions = 0
    settings: dict[str, Any] = {"num_blocks": 24, "window": window, "eos": (3,)}
    benches = Bench(**settings), OnlyGeneralPaths(**settings)
    prompts = [random_prompt(rng, 1, 20) for _ in range(4)]
    for _ in range(40):
        prompt, params = rng.choice(prompts), random_params(rng)
        for bench in benches:
            bench.add(prompt, **params)
    while any(bench.scheduler.has_work() or bench.in_flight for bench in benches):
        (plan, outputs), expected = map(one_step, benches)
        assert (plan, outputs) == expected
        num_preemptions += plan[-1][0]  # type: ignore[operator]
        assert len({bench.scheduler.fair_share.served(0) for bench in benches}) == 1
    assert (window or num_preemptions) and all(bench.block_manager.pool.num_held == 0 for bench in benches)
