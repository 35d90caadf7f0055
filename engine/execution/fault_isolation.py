"""A step that raised, computed again in parts, so that only those requests end that make it raise.

To compute a chunk again is harmless: its K and V, and the token behind it, are written to the same places, and are the
same numbers (bit by bit on the native backend). So a step that raises is halved until the halves are computed, or are
one request; where memory was short, one request's chunk is halved too. What raises alone ends with an error.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

from engine.execution.step_faults import StepFault, catch_fault
from engine.scheduling.step_plan import Chunk, RowFailed, StepPlan, StepResult

MAX_ALONE = 4  # requests that raise one by one, with no part computed in between: then the fault is nobody's own

FAILED = RowFailed("the engine failed while computing this request")
NO_MEMORY = RowFailed("the engine has too little memory to compute this request")

log = logging.getLogger("smoe.engine")


def isolate_faults(run: Callable[[StepPlan], StepResult], plan: StepPlan, fault: StepFault) -> StepResult:
    """The plan's results by `run`, which computes and waits, after the whole plan raised `fault`. Every chunk that
    could not be computed is a RowFailed. Raises FatalEngineError."""
    log.warning("a step of %d requests failed and is computed again in parts: %s", len(plan.chunks), fault.summary)
    attempts = _FaultIsolation(run)
    return attempts.parts_of(plan, fault) if _halves(plan, fault)[1] else attempts.whole(plan)


class _FaultIsolation:
    def __init__(self, run: Callable[[StepPlan], StepResult]) -> None:
        self._run = run
        self._num_alone = 0
        self._has_computed = False

    def whole(self, plan: StepPlan) -> StepResult:
        """Once more: what raises once may have been nobody's fault."""
        return self._attempt(plan)

    def parts_of(self, plan: StepPlan, fault: StepFault) -> StepResult:
        """Of a plan that raised."""
        first, second = _halves(plan, fault)
        if not second:
            return self._fail_single(plan, fault)
        result = self._attempt(replace(plan, chunks=first))
        rest = tuple(chunk for chunk in second if not _has_failed(chunk, result))
        return _merged(result, self._attempt(replace(plan, chunks=rest))) if rest else result

    def _attempt(self, plan: StepPlan) -> StepResult:
        if self._num_alone >= MAX_ALONE and not self._has_computed:
            return _failed(plan, FAILED)
        result = catch_fault(lambda: self._run(plan))
        if isinstance(result, StepFault):
            return self.parts_of(plan, result)
        self._has_computed = True
        return result

    def _fail_single(self, plan: StepPlan, fault: StepFault) -> StepResult:
        self._num_alone += 1
        request_id = plan.chunks[0].sequence.request_id
        log.error(
            "request %d cannot be computed and ends with an error: %s\n%s", request_id, fault.summary, fault.trace
        )
        return _failed(plan, NO_MEMORY if fault.kind == "memory" else FAILED)


def _halves(plan: StepPlan, fault: StepFault) -> tuple[tuple[Chunk, ...], tuple[Chunk, ...]]:
    """The second is empty where there is nothing to halve. Positions 4..8 of one request: 4..5 and 6..8."""
    chunks = plan.chunks
    middle = len(chunks) // 2
    if middle:
        return chunks[:middle], chunks[middle:]
    [chunk] = chunks
    length = chunk.length // 2
    if fault.kind != "memory" or not length:
        return chunks, ()
    later = chunk._replace(start=chunk.start + length, length=chunk.length - length)
    return (chunk._replace(length=length, samples=False),), (later,)


def _has_failed(chunk: Chunk, result: StepResult) -> bool:
    return isinstance(result.sampled.get(chunk.sequence.request_id), RowFailed)


def _failed(plan: StepPlan, failure: RowFailed) -> StepResult:
    return StepResult({chunk.sequence.request_id: failure for chunk in plan.chunks})


def _merged(first: StepResult, second: StepResult) -> StepResult:
    """Where a request is in both, `second` has its later positions."""
    scores = dict(first.prompt_logprobs)
    for request_id, later in second.prompt_logprobs.items():
        scores[request_id] = scores.get(request_id, []) + later
    choices = dict(first.expert_choices)
    for request_id, layers in second.expert_choices.items():
        earlier = choices.get(request_id, [[] for _ in layers])
        choices[request_id] = [a + b for a, b in zip(earlier, layers, strict=True)]
    return StepResult(first.sampled | second.sampled, scores, choices)
