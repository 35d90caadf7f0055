"""Runs one step plan through the model and the sampler. The only place where scheduling meets tensors."""

import logging
from dataclasses import dataclass, replace

import torch

from engine.execution.device_transfer import HostCopy
from engine.execution.expert_routing import expert_choices
from engine.execution.expert_stats import ExpertStats
from engine.execution.input_batch import BatchBuilder
from engine.execution.persistent_batch import PersistentBatch
from engine.execution.sampler import NOT_FINITE, Outcomes, PendingSamples, Sampler
from engine.scheduling.step_plan import StepPlan, StepResult
from model.forward_batch import ForwardBatch, Routing
from model.kv_pool import KvPool
from model.mixtral import Mixtral

log = logging.getLogger("smoe.engine")


@dataclass(frozen=True)
class InFlightStep:
    """A step that the device is computing."""

    plan: StepPlan
    sampling: PendingSamples | None  # None where no row's logits are wanted
    routing: Routing | None
    finite: HostCopy | None  # whether the positions' numbers are any; None where the logits of all of them tell


class ModelRunner:
    """Owns the model, the contents of the KV pool and the requests' rows; knows nothing of who waits."""

    def __init__(
        self,
        model: Mixtral,
        kv_pool: KvPool,
        requests: PersistentBatch,
        sampler: Sampler,
        expert_counts: ExpertStats | None = None,
    ) -> None:
        self.model = model
        self.kv_pool = kv_pool
        self.requests = requests
        self._batches = BatchBuilder(requests, model.config)
        self.sampler = sampler
        self.expert_counts = expert_counts  # None where the network has no experts

    def run(self, plan: StepPlan) -> StepResult:
        """Computes every chunk of a plan that is not empty."""
        return self.finish(self.launch(plan))

    def zero_blocks(self, block_ids: tuple[int, ...]) -> None:
        """Fills the blocks with zeros, behind the steps that were launched and before the next."""
        self.kv_pool.zero_blocks(block_ids)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> InFlightStep:
        """Gives the device a step that is not empty, and does not wait for it. Steps are computed in the order in which
        they are launched; what the one before samples is there for this one."""
        batch = self._batches.build(plan)
        forward, finite = batch.forward, None
        num_rows = len(forward.token_ids)
        if num_rows > batch.logits.num_sampled:  # a prompt's positions show no logits
            finite = torch.ones(num_rows, dtype=torch.bool, device=forward.token_ids.device)
            forward = replace(forward, finite=finite)
        logits = self.model.forward(forward, self.kv_pool)  # [N, V] float32
        self._count_experts(forward)
        sampling = self.sampler.launch(logits, batch.logits) if len(logits) else None
        return InFlightStep(plan, sampling, forward.routing, None if finite is None else HostCopy([finite]))

    def _count_experts(self, batch: ForwardBatch) -> None:
        """Requests do not depend on it: where it fails, the counts end and they go on."""
        if self.expert_counts is None or batch.routing is None:
            return
        try:
            self.expert_counts.record(batch.token_ids, batch.routing.expert_ids)
        except Exception:
            log.exception("experts are no longer counted")
            self.expert_counts = None

    def finish(self, step: InFlightStep) -> StepResult:
        """Waits for a step's results."""
        outcomes, scores = ({}, {}) if step.sampling is None else self.sampler.finish(step.sampling)
        if step.finite is not None:
            outcomes |= _not_finite(step.plan, step.finite.lists()[0])
        return StepResult(outcomes, scores, expert_choices(step.plan.chunks, step.routing))


def _not_finite(plan: StepPlan, finite: list[bool]) -> Outcomes:
    """The requests of those chunks that have a position without numbers."""
    found: Outcomes = {}
    if all(finite):
        return found
    first = 0
    for chunk in plan.chunks:
        if not all(finite[first : first + chunk.length]):
            found[chunk.sequence.request_id] = NOT_FINITE
        first += chunk.length
    return found
