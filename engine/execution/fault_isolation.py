"""Failed steps: classify the exception, then compute the step again in parts, so that only the requests at fault end.

Computing a chunk again is harmless: its K, V and sampled token go to the same places and are the same numbers (bit by
bit on the native backend). So a failed step is split in half until each part is computed or is one request; where
memory ran out, one request's chunk is split too. A request that fails alone ends with an error.
"""

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from msgspec.structs import replace

from engine.errors import FatalEngineError
from engine.out_of_memory import is_out_of_memory
from engine.scheduling.step_plan import Chunk, RowFailed, StepPlan, StepResult
from model.ops.native.expert_store import ExpertReadError

DEVICE_LOST = ("CUDA error", "Triton Error [CUDA]", "cuDNN error")
MAX_SINGLE_FAILURES = 4  # requests that fail alone before any part is computed; then no single request is at fault

FAILED = RowFailed("the engine failed while computing this request")
NO_MEMORY = RowFailed("the engine has too little memory to compute this request")

Result = TypeVar("Result")

log = logging.getLogger("smoe.engine")


@dataclass(frozen=True)
class StepFault:
    """Text of an exception. The exception itself would keep alive, through its traceback, tensors whose memory the next
    attempt needs."""

    kind: Literal["memory", "other"]
    summary: str  # one line
    trace: str


def catch_fault(compute: Callable[[], Result]) -> Result | StepFault:
    """Return the result of `compute`, or the exception that it raised as a StepFault.

    Raises FatalEngineError if no later step can be computed: the error of a CUDA device persists in the process, and
    an expert that the disk did not give twice may be needed in any step.
    """
    try:
        return compute()
    except Exception as error:  # noqa: BLE001 (the caller logs the fault or tries again)
        return _fault_of(error)


def _fault_of(error: Exception) -> StepFault:
    if isinstance(error, FatalEngineError):
        raise error
    if isinstance(error, ExpertReadError):
        raise FatalEngineError(str(error)) from error
    text = str(error)
    summary = f"{type(error).__name__}: {text.partition(chr(10))[0]}"
    if is_out_of_memory(error):
        return StepFault("memory", summary, "")
    if isinstance(error, torch.AcceleratorError) or any(words in text for words in DEVICE_LOST):
        raise FatalEngineError(f"the device is lost: {summary}") from error
    return StepFault("other", summary, "".join(traceback.format_exception(error)))


def isolate_faults(run: Callable[[StepPlan], StepResult], plan: StepPlan, fault: StepFault) -> StepResult:
    """Compute the parts of a plan that failed as a whole with `fault`. `run` computes a plan and waits for it.

    The parts have no drafts. A plan that cannot be split is computed once more as it is: what failed may have been its
    drafts, or may pass. Every request that could not be computed has a RowFailed in the result. Raises
    FatalEngineError.
    """
    plan = replace(plan, chunks=tuple(chunk.without_draft() for chunk in plan.chunks))
    log.warning("a step of %d requests failed and is computed again in parts: %s", len(plan.chunks), fault.summary)
    isolation = _FaultIsolation(run)
    _, second_half = _halves(plan, fault)
    return isolation.run_halves(plan, fault) if second_half else isolation.run(plan)


class _FaultIsolation:
    """Splits one failed plan and counts the requests that fail alone."""

    def __init__(self, run: Callable[[StepPlan], StepResult]) -> None:
        self._run = run
        self._num_single_failures = 0
        self._has_computed = False

    def run(self, plan: StepPlan) -> StepResult:
        """Compute the plan, in halves if it fails."""
        if self._num_single_failures >= MAX_SINGLE_FAILURES and not self._has_computed:
            return _failed(plan, FAILED)
        result = catch_fault(lambda: self._run(plan))
        if isinstance(result, StepFault):
            return self.run_halves(plan, result)
        self._has_computed = True
        return result

    def run_halves(self, plan: StepPlan, fault: StepFault) -> StepResult:
        """Compute the halves of a plan that failed with `fault`; a plan that cannot be halved fails."""
        first, second = _halves(plan, fault)
        if not second:
            return self._fail_single(plan, fault)
        result = self.run(replace(plan, chunks=first))
        rest = tuple(chunk for chunk in second if not _has_failed(chunk, result))
        return _merged(result, self.run(replace(plan, chunks=rest))) if rest else result

    def _fail_single(self, plan: StepPlan, fault: StepFault) -> StepResult:
        self._num_single_failures += 1
        request_id = plan.chunks[0].sequence.request_id
        log.error(
            "request %d cannot be computed and ends with an error: %s\n%s", request_id, fault.summary, fault.trace
        )
        return _failed(plan, NO_MEMORY if fault.kind == "memory" else FAILED)


def _halves(plan: StepPlan, fault: StepFault) -> tuple[tuple[Chunk, ...], tuple[Chunk, ...]]:
    """Split the plan's chunks, or its only chunk if memory ran out: positions 4..8 of one request become 4..5 and 6..8.
    The second half is empty if there is nothing to split."""
    chunks = plan.chunks
    middle = len(chunks) // 2
    if middle:
        return chunks[:middle], chunks[middle:]
    [chunk] = chunks
    length = chunk.length // 2
    if fault.kind != "memory" or not length:
        return chunks, ()
    later = replace(chunk, start=chunk.start + length, length=chunk.length - length)
    return (replace(chunk, length=length, samples=False),), (later,)


def _has_failed(chunk: Chunk, result: StepResult) -> bool:
    return isinstance(result.sampled.get(chunk.sequence.request_id), RowFailed)


def _failed(plan: StepPlan, failure: RowFailed) -> StepResult:
    return StepResult({chunk.sequence.request_id: failure for chunk in plan.chunks})


def _merged(first: StepResult, second: StepResult) -> StepResult:
    """Join the results of two halves. Of a request in both halves, `second` has the later positions."""
    scores = dict(first.prompt_logprobs)
    for request_id, later in second.prompt_logprobs.items():
        scores[request_id] = scores.get(request_id, []) + later
    choices = dict(first.expert_choices)
    for request_id, layers in second.expert_choices.items():
        earlier = choices.get(request_id, [[] for _ in layers])
        choices[request_id] = [a + b for a, b in zip(earlier, layers, strict=True)]
    gates = dict(first.gate_logits)
    for request_id, positions in second.gate_logits.items():
        gates[request_id] = gates.get(request_id, []) + positions
    embeddings = first.embeddings | second.embeddings
    return StepResult(first.sampled | second.sampled, scores, choices, embeddings, gate_logits=gates)
