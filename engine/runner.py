"""Runs one step plan through the model and the sampler. The only place where scheduling meets tensors."""

from dataclasses import dataclass

import torch

from engine.batch import BatchBuilder
from engine.expert_counts import ExpertCounts
from engine.plan import StepPlan, StepResult
from engine.request_rows import RequestRows
from engine.routing import expert_choices
from engine.sampler import Sampler, Sampling
from model.forward_batch import Routing
from model.kv_pool import KvPool
from model.mixtral import Mixtral


@dataclass(frozen=True)
class InFlight:
    """A step that the device is computing."""

    plan: StepPlan
    sampling: Sampling | None  # None where no row's logits are wanted
    routing: Routing | None


class ModelRunner:
    """Owns the model, the contents of the KV pool and the requests' rows; knows nothing of who waits."""

    def __init__(
        self,
        model: Mixtral,
        kv_pool: KvPool,
        requests: RequestRows,
        sampler: Sampler,
        expert_counts: ExpertCounts | None = None,
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

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> InFlight:
        """Gives the device a step that is not empty, and does not wait for it. Steps are computed in the order in which
        they are launched; what the one before samples is there for this one."""
        batch = self._batches.build(plan)
        logits = self.model.forward(batch.forward, self.kv_pool)  # [N, V] float32
        routing = batch.forward.routing
        if self.expert_counts is not None and routing is not None:
            self.expert_counts.record(batch.forward.token_ids, routing.chosen)
        return InFlight(plan, self.sampler.launch(logits, batch.logits) if len(logits) else None, routing)

    def finish(self, step: InFlight) -> StepResult:
        """Waits for a step's results."""
        outcomes, scores = ({}, {}) if step.sampling is None else self.sampler.finish(step.sampling)
        return StepResult(outcomes, scores, expert_choices(step.plan.chunks, step.routing))
