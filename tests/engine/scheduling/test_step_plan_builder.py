"""A plan in progress: its budget, its preempted chunks, and the counters of its sequences."""

import pytest

from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan_builder import StepPlanBuilder
from engine.types import Request, SamplingParams


def _sequence(request_id: int, length: int, max_generated: int = 4) -> Sequence:
    return Sequence(Request(request_id, [1] * length, SamplingParams()), (0, request_id), max_generated)


def test_a_preempted_chunk_gives_its_budget_back_and_leaves_no_trace() -> None:
    step, kept, victim = StepPlanBuilder(10), _sequence(0, 3), _sequence(1, 6)
    step.add(kept, 3, reaches_end=True)
    step.add(victim, 6, reaches_end=True)
    assert step.budget == 1
    step.remove_preempted(victim)
    assert step.budget == 7
    plan = step.build(())
    assert [chunk.sequence for chunk in plan.chunks] == [kept]
    assert (plan.num_tokens, plan.num_preemptions, victim.num_scheduled) == (3, 1, 0)


def test_a_preempted_sequence_without_a_chunk_changes_no_budget() -> None:
    step = StepPlanBuilder(10)
    step.remove_preempted(_sequence(0, 3))
    assert (step.budget, step.build(()).num_preemptions) == (10, 1)


@pytest.mark.parametrize(("reaches_end", "max_generated", "samples"), [(True, 4, 1), (False, 4, 0), (True, 0, 0)])
def test_only_a_chunk_that_reaches_the_end_of_a_generating_request_samples(
    reaches_end: bool, max_generated: int, samples: int
) -> None:
    step, sequence = StepPlanBuilder(10), _sequence(0, 5, max_generated)
    step.add(sequence, 5, reaches_end=reaches_end)
    assert sequence.num_scheduled == 0, "no counter changes before build()"
    [chunk] = step.build((3,)).chunks
    assert (chunk.start, chunk.length, chunk.samples, chunk.is_prefill) == (0, 5, bool(samples), True)
    assert (sequence.num_scheduled, sequence.num_pending_tokens, sequence.num_chunks_in_flight) == (5, samples, 1)
