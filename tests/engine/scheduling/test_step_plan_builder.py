"""A plan in progress: its budget, its preempted chunks, and the counters of its sequences."""

import pytest

from engine.scheduling.prompt_share import PromptShare
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan_builder import StepPlanBuilder
from engine.scheduling.step_times import StepTimes, StepWork
from engine.types import Request, SamplingParams


def builder() -> StepPlanBuilder:
    return StepPlanBuilder(10, PromptShare(StepTimes()))


def _sequence(request_id: int, length: int, max_generated: int = 4) -> Sequence:
    return Sequence(Request(request_id, [1] * length, SamplingParams()), (0, request_id), max_generated)


def test_a_preempted_chunk_gives_its_budget_back_and_leaves_no_trace() -> None:
    step, kept, victim = builder(), _sequence(0, 3), _sequence(1, 6)
    step.add(kept, 3, reaches_end=True)
    step.add(victim, 6, reaches_end=True)
    assert step.budget == 1
    step.remove_preempted(victim)
    assert step.budget == 7
    plan = step.build((), 0.0)
    assert [chunk.sequence for chunk in plan.chunks] == [kept]
    assert (plan.num_tokens, plan.num_preemptions, victim.num_scheduled) == (3, 1, 0)
    assert plan.work == StepWork(num_chunks=1, num_positions=3, num_scored=0)


def test_a_preempted_sequence_without_a_chunk_changes_no_budget() -> None:
    step = builder()
    step.remove_preempted(_sequence(0, 3))
    assert (step.budget, step.build((), 0.0).num_preemptions) == (10, 1)


@pytest.mark.parametrize(("reaches_end", "max_generated", "samples"), [(True, 4, 1), (False, 4, 0), (True, 0, 0)])
def test_only_a_chunk_that_reaches_the_end_of_a_generating_request_samples(
    reaches_end: bool, max_generated: int, samples: int
) -> None:
    step, sequence = builder(), _sequence(0, 5, max_generated)
    step.add(sequence, 5, reaches_end=reaches_end)
    assert sequence.num_scheduled == 0, "no counter changes before build()"
    [chunk] = step.build((3,), 0.0).chunks
    assert (chunk.start, chunk.length, chunk.samples, chunk.is_prefill) == (0, 5, bool(samples), True)
    assert (sequence.num_scheduled, sequence.num_pending_tokens, sequence.num_chunks_in_flight) == (5, samples, 1)


def test_the_work_of_a_step_counts_the_positions_that_need_logits_for_their_prompt() -> None:
    scored = Sequence(Request(1, [1] * 6, SamplingParams(prompt_logprobs=True)), (0, 1), 4)
    victim = Sequence(Request(2, [1] * 2, SamplingParams(prompt_logprobs=True)), (0, 2), 4)
    step = builder()
    step.add(_sequence(0, 2), 2, reaches_end=True)
    step.add(scored, 5, reaches_end=False)
    step.add(victim, 2, reaches_end=True)
    step.remove_preempted(victim)
    plan = step.build((), 7.0)
    assert (plan.work, plan.planned_s) == (StepWork(num_chunks=2, num_positions=7, num_scored=5), 7.0)
