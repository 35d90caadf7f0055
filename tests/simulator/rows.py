"""The product's ModelRunner, BatchBuilder, PersistentBatch and Sampler over the exact model.

Slower than ExactRunner, but closer to production.
"""

from typing import Any

import torch
from torch import Tensor

from engine.execution.model_runner import InFlightStep, ModelRunner
from engine.execution.persistent_batch import PersistentBatch
from engine.execution.sampler import Sampler
from engine.scheduling.step_plan import StepPlan
from model.config import ModelConfig
from model.forward_batch import ForwardBatch
from model.ops.reference.sampling import write_history
from model.sampling_batch import IntParam, SampledRows, SamplingRows, Status
from tests.simulator.exact import NAN, POISON, experts_of, mix, next_token


class ExactPool:
    """Fake of the KV pool: the exact model's slots."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.slots = [POISON] * ((num_blocks + 1) * block_size)

    def zero_blocks(self, block_ids: tuple[int, ...]) -> None:
        for block in block_ids:
            self.slots[block * self.block_size : (block + 1) * self.block_size] = [0] * self.block_size

    def zero_slots(self, slots: Tensor) -> None:
        for slot in slots.tolist():
            self.slots[slot] = 0


class ExactNetwork:
    """The exact model as a network over a ForwardBatch. A request's root depends only on its experts per token.

    `nan_rows`: rows of the next batch that compute NaN.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.nan_rows: set[int] = set()

    def forward(self, batch: ForwardBatch, pool: ExactPool) -> Tensor:
        """Return logits that are 1 at the next token and 0 elsewhere."""
        tokens, positions, slots = (t.tolist() for t in (batch.token_ids, batch.positions, batch.slot_mapping))
        starts, tables = batch.query_start.tolist(), batch.block_tables.tolist()
        assert batch.routing is not None
        ks = batch.routing.experts_per_token.tolist()
        wanted = {row: index for index, row in enumerate(batch.logit_rows.tolist())}
        pooled = {} if batch.hidden is None else {row: i for i, row in enumerate(batch.hidden.rows.tolist())}
        logits = torch.zeros(len(wanted), self.config.vocab_size)
        for sequence, table in enumerate(tables):
            for row in range(starts[sequence], starts[sequence + 1]):
                position = positions[row]
                before = pool.slots[_slot(pool, table, position - 1)] if position else mix(0, ks[row])
                is_nan = row in self.nan_rows or before == NAN or self._reads_a_nan(pool, table)
                assert slots[row] == _slot(pool, table, position)
                pool.slots[slots[row]] = NAN if is_nan else mix(tokens[row], position, before)
                for layer, expert_ids in enumerate(batch.routing.expert_ids[:, row]):
                    ids = experts_of(tokens[row], position, layer, ks[row], self.config.num_experts)
                    expert_ids[: len(ids)] = torch.tensor(ids)
                if batch.finite is not None:
                    batch.finite[row] = not is_nan
                if row in wanted:
                    self._write(logits[wanted[row]], pool, table, position, is_nan)
                if batch.hidden is not None and row in pooled:
                    self._write(batch.hidden.states[pooled[row]], pool, table, position, is_nan)
        self.nan_rows = set()
        return logits

    def _write(self, row: Tensor, pool: ExactPool, table: list[int], position: int, is_nan: bool) -> None:
        """Write logits or a hidden state: 1 at the place of the next token, 0 elsewhere; or NaN everywhere."""
        row.fill_(float("nan") if is_nan else 0.0)
        if is_nan:
            return
        window = self.config.window
        first = max(0, position - window + 1) if window else 0
        values = [pool.slots[_slot(pool, table, p)] for p in range(first, position + 1)]
        row[next_token(values, self.config.vocab_size) % len(row)] = 1.0

    def _reads_a_nan(self, pool: ExactPool, table: list[int]) -> bool:
        size = pool.block_size
        return any(NAN in pool.slots[block * size : (block + 1) * size] for block in table if block)


def _slot(pool: ExactPool, table: list[int], position: int) -> int:
    block = table[position // pool.block_size]
    assert block != 0, "the null block is read or written"
    return block * pool.block_size + position % pool.block_size


class ExactSampling:
    """Fake of the sampling op: takes the token of the largest logit that the row's mask allows, and reports NaN."""

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        is_nan = logits.isnan().any(1)
        token_ids = torch.where(is_nan, 0, _masked(logits, rows).argmax(1))
        write_history(rows, token_ids)
        status = torch.where(is_nan, Status.NOT_FINITE, Status.DONE).to(torch.uint8)
        no_logprobs = torch.empty(len(logits), 0)
        return SampledRows(token_ids, status, torch.zeros(len(logits)), no_logprobs.int(), no_logprobs)


def _masked(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Return the logits, with -Inf for the tokens that the masks of their rows forbid."""
    if rows.masks is None:
        return logits
    tokens = torch.arange(logits.shape[1])
    bits = (rows.masks[:, tokens // 32] >> tokens % 32) & 1  # [M, V]
    mask_rows = rows.int_params[:, IntParam.MASK_ROW]  # -1: the row has none
    forbidden = (bits[mask_rows] == 0) & (mask_rows >= 0)[:, None]
    return logits.masked_fill(forbidden, float("-inf"))


class RowsRunner(ModelRunner):
    """ModelRunner in which every chunk of the requests in `nan_ids` computes NaN, and the next draft of those in
    `nan_draft_ids`."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.nan_ids: set[int] = set()
        self.nan_draft_ids: set[int] = set()

    def launch(self, plan: StepPlan) -> InFlightStep:
        network: Any = self.model
        first = 0
        for chunk in plan.chunks:
            rows = range(first, first + chunk.length)
            if chunk.sequence.request_id in self.nan_ids:
                network.nan_rows |= set(rows)
            elif chunk.draft and chunk.sequence.request_id in self.nan_draft_ids:
                network.nan_rows |= set(rows[-len(chunk.draft) :])
                self.nan_draft_ids.remove(chunk.sequence.request_id)
            first += chunk.length
        return super().launch(plan)


def rows_runner(config: ModelConfig, num_blocks: int, block_size: int, max_num_seqs: int, max_len: int) -> RowsRunner:
    network: Any = ExactNetwork(config)
    pool: Any = ExactPool(num_blocks, block_size)
    ops: Any = ExactSampling()
    requests = PersistentBatch(max_num_seqs, max_len, block_size, config.vocab_size, torch.device("cpu"))
    return RowsRunner(network, pool, requests, Sampler(ops, requests, config.eos_token_ids))
