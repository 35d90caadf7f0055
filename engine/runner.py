"""Runs one step plan through the model and the sampler. The only place where scheduling meets tensors."""

import math

import torch

from engine.batch import LogitRow, build_batch
from engine.expert_counts import ExpertCounts
from engine.plan import RowFailed, Sampled, StepPlan, StepResult
from engine.routing import expert_choices
from engine.sampler import NOT_FINITE, Sampler, token_logprobs
from engine.types import TokenLogprobs
from model.kv_pool import KvPool
from model.mixtral import Mixtral


class ModelRunner:
    """Owns the model and the contents of the KV pool; knows nothing of who waits."""

    def __init__(
        self,
        model: Mixtral,
        kv_pool: KvPool,
        sampler: Sampler,
        block_size: int,
        device: torch.device,
        expert_counts: ExpertCounts | None = None,
    ) -> None:
        self.model = model
        self.kv_pool = kv_pool
        self.sampler = sampler
        self.block_size = block_size
        self.device = device
        self.expert_counts = expert_counts  # None where the network has no experts

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Computes every chunk of a plan that is not empty."""
        batch = build_batch(plan, self.model.config, self.block_size, self.device)
        logits = self.model.forward(batch.forward, self.kv_pool)  # [N, V] float32
        scores = _score_prompts(logits, batch.logit_rows)
        routing = batch.forward.routing
        if self.expert_counts is not None and routing is not None:
            self.expert_counts.record(batch.forward.token_ids, routing.chosen)
        sampled = self._sample(logits, batch.logit_rows) | _failed_scores(scores)
        return StepResult(sampled, scores, expert_choices(plan.chunks, routing))

    def _sample(self, logits: torch.Tensor, rows: list[LogitRow]) -> dict[int, Sampled | RowFailed]:
        indices = [index for index, row in enumerate(rows) if row.samples]
        chosen = logits if len(indices) == len(rows) else logits[indices]
        sequences = [rows[index].sequence for index in indices]
        outcomes = self.sampler.sample(chosen, sequences)
        return {sequence.request_id: outcome for sequence, outcome in zip(sequences, outcomes, strict=True)}


def _score_prompts(logits: torch.Tensor, rows: list[LogitRow]) -> dict[int, list[TokenLogprobs]]:
    """For requests that want them: the log probability of each prompt token that a row of this step predicts."""
    scores: dict[int, list[TokenLogprobs]] = {}
    for index, row in enumerate(rows):
        sequence = row.sequence
        params = sequence.request.params
        if params.prompt_logprobs and not sequence.num_generated and row.position + 1 < sequence.num_prompt_tokens:
            token_id = sequence.token_ids[row.position + 1]
            score = token_logprobs(logits[index], token_id, params.num_logprobs or 0)
            scores.setdefault(sequence.request_id, []).append(score)
    return scores


def _failed_scores(scores: dict[int, list[TokenLogprobs]]) -> dict[int, Sampled | RowFailed]:
    """Requests with a score that is no number, which is what softmax makes of logits that are not finite."""
    return {
        request_id: NOT_FINITE
        for request_id, positions in scores.items()
        if any(math.isnan(position.logprob) for position in positions)
    }
