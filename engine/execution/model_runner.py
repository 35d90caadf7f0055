"""Run one step plan through the model and the sampler. Scheduling and tensors meet only here."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from engine.execution.device_transfer import HostCopy, to_device
from engine.execution.embeddings import PendingEmbeddings, copy_states, finish_embeddings, hidden_rows
from engine.execution.expert_routing import copy_expert_ids, expert_choices
from engine.execution.expert_stats import ExpertReporter
from engine.execution.input_batch import BatchBuilder
from engine.execution.persistent_batch import PersistentBatch
from engine.execution.sampler import NOT_FINITE, Outcomes, PendingSamples, Sampler
from engine.scheduling.step_plan import StepPlan, StepResult
from model.kv_pool import KvPool
from model.mixtral import Mixtral


@dataclass(frozen=True)
class InFlightStep:
    """A step that the device is computing."""

    plan: StepPlan
    sampling: PendingSamples | None  # None if no row needs logits
    expert_ids: HostCopy | None  # None if no request reports experts
    finite: HostCopy | None  # per position, True if its hidden state is finite; None if all positions have logits
    embeddings: PendingEmbeddings | None  # None if no prompt to embed is complete


class ModelRunner:
    """Owns the model, the contents of the KV pool and the persistent batch. Knows no queue."""

    def __init__(
        self,
        model: Mixtral,
        kv_pool: KvPool,
        requests: PersistentBatch,
        sampler: Sampler,
        experts: ExpertReporter | None = None,
    ) -> None:
        """`experts` is None if nothing counts the experts."""
        self.model = model
        self.kv_pool = kv_pool
        self.requests = requests
        self._batches = BatchBuilder(requests, model.config)
        self.sampler = sampler
        self.experts = experts or ExpertReporter(None)

    def run(self, plan: StepPlan) -> StepResult:
        """Compute every chunk of a non-empty plan and wait for the results."""
        return self.finish(self.launch(plan))

    def zero_blocks(self, block_ids: tuple[int, ...]) -> None:
        """Fill the blocks with zeros, after the launched steps and before the next one."""
        self.kv_pool.zero_blocks(to_device(np.array(block_ids, dtype=np.int64), self.requests.device))

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> InFlightStep:
        """Queue a non-empty plan on the device without waiting for it. The device computes steps in the order of their
        launch, so a step can read the tokens that the one before it samples."""
        batch = self._batches.build(plan)
        forward, finite = batch.forward, None
        num_rows = len(forward.token_ids)
        if num_rows > batch.logits.num_sampled:  # positions of a prompt have no logits to check
            finite = torch.ones(num_rows, dtype=torch.bool, device=forward.token_ids.device)
            hidden = hidden_rows(plan.chunks, self.model.config.dim, finite.device)
            forward = replace(forward, finite=finite, hidden=hidden)
        logits = self.model.forward(forward, self.kv_pool)  # [N, V] float32
        if forward.routing is not None:
            self.experts.record(forward.token_ids, forward.routing.expert_ids)
        sampling = self.sampler.launch(logits, batch.logits) if len(logits) else None
        expert_ids = copy_expert_ids(plan.chunks, forward.routing)
        embeddings = copy_states(plan.chunks, forward.hidden)
        return InFlightStep(plan, sampling, expert_ids, None if finite is None else HostCopy([finite]), embeddings)

    def finish(self, step: InFlightStep) -> StepResult:
        """Wait for a step and return its results."""
        outcomes, scores = ({}, {}) if step.sampling is None else self.sampler.finish(step.sampling)
        if step.finite is not None:
            outcomes |= _not_finite(step.plan, step.finite.lists()[0])
        embeddings, failed = finish_embeddings(step.embeddings)
        outcomes |= dict.fromkeys(failed, NOT_FINITE)
        return StepResult(outcomes, scores, expert_choices(step.plan.chunks, step.expert_ids), embeddings)


def _not_finite(plan: StepPlan, finite: list[bool]) -> Outcomes:
    """Fail the requests whose chunk has a position with NaN or Inf."""
    found: Outcomes = {}
    if all(finite):
        return found
    first = 0
    for chunk in plan.chunks:
        if not all(finite[first : first + chunk.length]):
            found[chunk.sequence.request_id] = NOT_FINITE
        first += chunk.length
    return found
