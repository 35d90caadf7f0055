"""Run one step plan through the model and the sampler. Scheduling and tensors meet only here."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.execution.adapters import AdapterStore
from engine.execution.decode_batch import LogitRows
from engine.execution.device_transfer import HostLists, to_device
from engine.execution.draft_rows import kept_rows
from engine.execution.embeddings import PendingEmbeddings, copy_states, finish_embeddings, hidden_rows
from engine.execution.experts.gate_logits import PendingGates, copy_gates, finish_gates
from engine.execution.experts.routing import Routed, copy_expert_ids, expert_choices
from engine.execution.experts.stats import ExpertReporter
from engine.execution.input_batch import BatchBuilder
from engine.execution.persistent_batch import PersistentBatch
from engine.execution.sampler import NOT_FINITE, BehindDrafts, Outcomes, PendingSamples, PreparedRows, Sampler
from engine.scheduling.step_plan import Chunk, StepPlan, StepResult
from model.forward_batch import ForwardBatch
from model.kv_pool import KvPool
from model.lora.adapter import Adapter
from model.mixtral import Mixtral


class InFlightStep(NamedTuple):
    """A step that the device is computing."""

    plan: StepPlan
    sampling: PendingSamples | None  # None if no row needs logits
    expert_ids: HostLists | None  # None if no request reports experts
    finite: HostLists | None  # per position, True if its hidden state is finite; None if all positions have logits
    embeddings: PendingEmbeddings | None  # None if no prompt to embed is complete
    uncounted: Routed | None = None  # rows whose experts are counted once it is known which of them count
    gates: PendingGates | None = None  # None if no request reports gate logits


class ModelRunner:
    """Owns the model, the contents of the KV pool and the persistent batch. Knows no queue."""

    def __init__(
        self,
        model: Mixtral,
        kv_pool: KvPool,
        requests: PersistentBatch,
        sampler: Sampler,
        experts: ExpertReporter | None = None,
        adapters: AdapterStore | None = None,
    ) -> None:
        """`experts` is None if nothing counts the experts. `adapters`: those that requests may have."""
        self.model = model
        self.kv_pool = kv_pool
        self.requests = requests
        self.adapters = adapters or AdapterStore()
        self._batches = BatchBuilder(requests, model.config, self.adapters)
        self.sampler = sampler
        self.experts = experts or ExpertReporter(None)

    def run(self, plan: StepPlan) -> StepResult:
        """Compute every chunk of a non-empty plan and wait for the results."""
        return self.finish(self.launch(plan))

    def add_adapter(self, name: str, adapter: Adapter) -> int:
        """Add an adapter under a name, and return the bytes of one of equal files that it replaces."""
        num_bytes = self.adapters.add(name, adapter)
        self._batches.forget()
        return num_bytes

    def unload_adapter(self, digest: str) -> int:
        """Free an adapter's memory, and return its bytes. No request of a later step may have it."""
        num_bytes = self.adapters.remove(digest)
        self._batches.forget()
        return num_bytes

    def zero_blocks(self, block_ids: tuple[int, ...]) -> None:
        """Fill the blocks with zeros, after the launched steps and before the next one."""
        self.kv_pool.zero_blocks(to_device(np.array(block_ids, dtype=np.int64), self.requests.device))

    def zero_drafts(self, plan: StepPlan) -> None:
        """Fill the slots of the plan's drafted tokens with zeros, after the plan was computed or has failed.

        One that gave NaN or Inf spoils later rows of its request: attention multiplies masked positions by 0."""
        slots = _draft_slots(plan, self.requests.block_size)
        if len(slots):
            self.kv_pool.zero_slots(to_device(slots, self.requests.device))

    def launch(self, plan: StepPlan) -> InFlightStep:
        """Queue a non-empty plan on the device without waiting for it. The device computes steps in the order of their
        launch, so a step can read the tokens that the one before it samples."""
        batch = self._batches.build(plan)
        forward, finite, routed = batch.forward, None, batch.routed
        if batch.has_prompt_rows:  # they have no logits to check
            finite = torch.ones(len(forward.token_ids), dtype=torch.bool, device=self.requests.device)
            hidden = hidden_rows(plan.chunks, self.model.config.dim, finite.device)
            forward = replace(forward, finite=finite, hidden=hidden)
        logits, rows = self._forward(forward, batch.logits)
        if routed is not None and not batch.logits.drafted:
            self.experts.record(*routed, is_overwritten=batch.is_overwritten)
        sampling = None if rows is None else self.sampler.launch(logits, rows)
        expert_ids = copy_expert_ids(plan.chunks, forward.routing) if batch.reports_experts else None
        embeddings = copy_states(plan.chunks, forward.hidden)
        copied = None if finite is None else HostLists([finite])
        uncounted = routed if batch.logits.drafted else None
        reported = copy_gates(plan.chunks, forward.gates)
        return InFlightStep(plan, sampling, expert_ids, copied, embeddings, uncounted, reported)

    def _forward(self, batch: ForwardBatch, rows: LogitRows) -> tuple[Tensor, PreparedRows | None]:
        """Return the logits [N, V] float32, and the prepared parameters of their rows; None without rows.

        On a GPU they are prepared after the network's launch, which they would delay. On a CPU they are prepared before
        it: the network reads all weights, which leaves no code of numpy in the caches.
        """
        if not len(rows.rows):
            return self.model.forward(batch, self.kv_pool), None
        if self.requests.device.type == "cpu":
            prepared = self.sampler.prepare(rows)
            return self.model.forward(batch, self.kv_pool), prepared
        return self.model.forward(batch, self.kv_pool), self.sampler.prepare(rows)

    def finish(self, step: InFlightStep) -> StepResult:
        """Wait for a step and return its results."""
        outcomes, scores, behind = ({}, {}, {}) if step.sampling is None else self.sampler.finish(step.sampling)
        if step.finite is not None:
            outcomes |= _not_finite(step.plan, step.finite.wait()[0])
        embeddings, failed = finish_embeddings(step.embeddings)
        outcomes |= dict.fromkeys(failed, NOT_FINITE)
        choices = expert_choices(step.plan.chunks, step.expert_ids)
        spoiled = [c for c in step.plan.chunks if c.draft and outcomes.get(c.sequence.request_id) is NOT_FINITE]
        if step.uncounted is not None:
            self._count_kept(step.plan, step.uncounted, behind, {chunk.sequence.request_id for chunk in spoiled})
        if spoiled:
            again = self._run_without_drafts(spoiled)
            outcomes, choices = outcomes | again.sampled, choices | again.expert_choices
            behind = {i: tokens for i, tokens in behind.items() if i not in again.sampled}
        return StepResult(outcomes, scores, choices, embeddings, behind, finish_gates(step.gates))

    def _count_kept(self, plan: StepPlan, routed: Routed, behind: BehindDrafts, spoiled: set[int]) -> None:
        """Count the experts of the rows of known and of accepted tokens."""
        rows = kept_rows(plan.chunks, behind, spoiled)
        if len(rows) == 1:  # one slice: the arrays need no index, which would take ten times as long
            self.experts.record(routed.token_ids[rows[0]], routed.expert_ids[:, rows[0]], is_overwritten=True)
        elif rows:
            indices = [row for part in rows for row in range(part.start, part.stop)]
            self.experts.record(routed.token_ids[indices], routed.expert_ids[:, indices], is_overwritten=False)

    def _run_without_drafts(self, spoiled: list[Chunk]) -> StepResult:
        """Compute the known tokens of these chunks again. A drafted token that gave NaN or Inf may have spoiled its
        request's other rows."""
        self.zero_drafts(StepPlan(tuple(spoiled)))
        return self.run(StepPlan(tuple(chunk.without_draft() for chunk in spoiled)))


def _draft_slots(plan: StepPlan, block_size: int) -> NDArray[np.int64]:
    """Return block_id * block_size + offset of each position with a drafted token."""
    slots = []
    for chunk in plan.chunks:
        num_drafted = len(chunk.draft)
        slots += chunk.sequence.slots(chunk.start + chunk.length - num_drafted, num_drafted, block_size)
    return np.array(slots, dtype=np.int64)


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
