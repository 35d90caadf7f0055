"""Order of launches and results, with and without a step in flight."""

from typing import Any

import pytest
from msgspec.structs import replace

from engine.execution.step_pipeline import StepPipeline
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import Chunk, RowFailed, Sampled, StepPlan, StepResult
from engine.types import Request, SamplingParams


class RecordingRunner:
    """A runner that writes down its calls and samples each request's id as its token."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.bad_ids: set[int] = set()

    def zero_blocks(self, block_ids: tuple[int, ...]) -> None:
        self.calls.append(f"zero {block_ids}")

    def zero_drafts(self, plan: StepPlan) -> None:
        if plan.num_drafted:
            self.calls.append(f"zero drafts of {ids(plan)}")

    def launch(self, plan: StepPlan) -> StepPlan:
        self.calls.append(f"launch {ids(plan)}")
        if self.bad_ids & set(ids(plan)):
            raise ValueError("bad request")
        return plan

    def finish(self, step: StepPlan) -> StepResult:
        self.calls.append(f"finish {ids(step)}")
        return StepResult({request_id: Sampled(request_id) for request_id in ids(step)})

    def run(self, plan: StepPlan) -> StepResult:
        return self.finish(self.launch(plan))


def ids(plan: StepPlan) -> list[int]:
    return [chunk.sequence.request_id for chunk in plan.chunks]


def plan(*request_ids: int, **fields: Any) -> StepPlan:
    sequences = [Sequence(Request(i, [5], SamplingParams()), (0, 0), 10) for i in request_ids]
    return StepPlan(tuple(Chunk(sequence, 0, 1, True, True) for sequence in sequences), **fields)


def pipeline(is_asynchronous: bool) -> tuple[StepPipeline, RecordingRunner]:
    runner: Any = RecordingRunner()
    return StepPipeline(runner, is_asynchronous), runner


def test_a_plain_step_is_complete_when_it_returns() -> None:
    steps, runner = pipeline(is_asynchronous=False)
    [(completed, result)] = steps.advance(plan(1, 2))
    assert ids(completed) == [1, 2] and result.sampled == {1: Sampled(1), 2: Sampled(2)}
    assert runner.calls == ["launch [1, 2]", "finish [1, 2]"] and not steps.in_flight


def test_an_asynchronous_step_is_completed_after_the_next_launch() -> None:
    steps, runner = pipeline(is_asynchronous=True)
    assert steps.advance(plan(1)) == [] and len(steps.in_flight) == 1
    [(completed, _)] = steps.advance(plan(2))
    assert ids(completed) == [1]
    assert runner.calls == ["launch [1]", "launch [2]", "finish [1]"]
    [(completed, _)] = steps.advance(plan())
    assert ids(completed) == [2] and not steps.in_flight


def test_no_step_stays_in_flight_while_a_request_finds_no_block() -> None:
    steps, _ = pipeline(is_asynchronous=True)
    steps.advance(plan(1))
    assert [ids(completed) for completed, _ in steps.advance(plan(2, num_blocked=1))] == [[1], [2]]
    assert not steps.in_flight


@pytest.mark.parametrize("is_asynchronous", [False, True])
def test_a_launch_that_fails_ends_the_request_at_fault_and_zeroes_blocks_once(is_asynchronous: bool) -> None:
    steps, runner = pipeline(is_asynchronous)
    runner.bad_ids = {2}
    results = steps.advance(plan(1, 2, 3, blocks_to_zero=(7,))) + steps.advance(plan())
    [(_, result)] = results
    assert {i: type(outcome) for i, outcome in result.sampled.items()} == {1: Sampled, 2: RowFailed, 3: Sampled}
    assert [call for call in runner.calls if call.startswith("zero")] == ["zero (7,)"]


def test_a_step_that_fails_leaves_no_numbers_of_its_drafts() -> None:
    steps, runner = pipeline(is_asynchronous=False)
    runner.bad_ids = {2}
    drafted = plan(1, 2)
    drafted = StepPlan(tuple(replace(chunk, length=3, draft=(7, 8)) for chunk in drafted.chunks))
    [(_, result)] = steps.advance(drafted)
    assert result.sampled[1] == Sampled(1) and isinstance(result.sampled[2], RowFailed)
    assert runner.calls[:3] == ["launch [1, 2]", "zero drafts of [1, 2]", "launch [1]"]
