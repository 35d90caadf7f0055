"""Input tensors of a step plan, and the owner of each row of logits.

Letters: T positions computed in the step, S sequences, M blocks of the longest block table, N rows with logits.
"""

import numpy as np
from numpy.typing import NDArray

from engine.execution.adapters import AdapterStore
from engine.execution.decode_batch import DecodeBatch, InputBatch, LogitRows
from engine.execution.device_transfer import to_device
from engine.execution.draft_batch import DraftBatches, is_decode_step
from engine.execution.draft_rows import draft_rows
from engine.execution.experts.gate_logits import gate_rows
from engine.execution.experts.routing import Routed, build_routing
from engine.execution.persistent_batch import Int64s, PersistentBatch
from engine.scheduling.step_plan import Chunk, StepPlan
from model.config import ModelConfig
from model.forward_batch import ForwardBatch

Flags = NDArray[np.bool_]


class BatchBuilder:
    """Builds the input of each step. Consecutive decode steps of the same requests share a DecodeBatch."""

    def __init__(self, requests: PersistentBatch, model: ModelConfig, adapters: AdapterStore | None = None) -> None:
        """`adapters`: those that requests may have."""
        self._requests = requests
        self._model = model
        self._adapters = adapters or AdapterStore()
        self._decode_batch: DecodeBatch | None = None
        self._draft_batches = DraftBatches(requests, model, self._adapters)

    def forget(self) -> None:
        """Drop the arrays of the last decode step, and with them its adapters."""
        self._decode_batch = None

    def build(self, plan: StepPlan) -> InputBatch:
        """Build the input of a plan: its chunks in order, positions ascending within each. On a CPU it is valid until
        the next call."""
        chunks = plan.chunks
        rows = self._requests.update([chunk.sequence for chunk in chunks])
        has_drafts = any(chunk.draft for chunk in chunks)
        if has_drafts or self._requests.has_drafts:
            self._requests.write_drafts(chunks, rows)
        if has_drafts and self._requests.device.type == "cpu" and is_decode_step(chunks):
            return self._draft_batches.at(chunks, rows)
        if any(chunk.length > 1 or not chunk.samples for chunk in chunks):
            starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
            lengths = np.array([chunk.length for chunk in chunks])
            return build_batch(chunks, rows, starts, lengths, self._requests, self._model, self._adapters)
        if self._decode_batch is None or self._decode_batch.rows is not rows:
            self._decode_batch = DecodeBatch(chunks, rows, self._requests, self._model, self._adapters)
        return self._decode_batch.at(chunks)


def build_batch(
    chunks: tuple[Chunk, ...],
    rows: Int64s,
    starts: Int64s,
    lengths: Int64s,
    requests: PersistentBatch,
    model: ModelConfig,
    adapters: AdapterStore | None = None,
) -> InputBatch:
    """Build the input of chunks of any kind, with their rows in the persistent batch, starts and lengths, [S] each."""
    device, block_size = requests.device, requests.block_size
    query_start = np.concatenate(([0], lengths.cumsum()))
    positions = _positions(starts, lengths, query_start)
    tables, device_tables = requests.tables_of(rows)
    owners = np.repeat(np.arange(len(chunks)), lengths)
    slots = tables[owners, positions // block_size].astype(np.int64) * block_size + positions % block_size
    logit_rows, indices = _logit_rows(chunks, requests.scores_prompt, rows, query_start)
    forward = ForwardBatch(
        token_ids=requests.tokens_at(rows[owners], positions),
        positions=to_device(positions, device),
        slot_mapping=to_device(slots, device),
        query_start=to_device(query_start.astype(np.int32), device),
        context_len=to_device((starts + lengths).astype(np.int32), device),
        block_tables=device_tables,
        logit_rows=to_device(indices, device),
        routing=build_routing(chunks, model, device),
        adapters=None if adapters is None else adapters.rows_of(chunks, device),
        gates=gate_rows(chunks, model, device),
    )
    return InputBatch(
        forward,
        logit_rows,
        Routed.of(forward),
        has_prompt_rows=len(positions) > logit_rows.num_sampled,
        reports_experts=any(chunk.sequence.experts for chunk in chunks),
        is_overwritten=False,
    )


def _positions(starts: Int64s, lengths: Int64s, query_start: Int64s) -> Int64s:
    """Absolute positions of all rows [T]: starts (7, 0) and lengths (1, 3) -> 7, 0, 1, 2."""
    return np.arange(query_start[-1]) + np.repeat(starts - query_start[:-1], lengths)


def _logit_rows(
    chunks: tuple[Chunk, ...],
    scores_prompt: Flags,
    rows: Int64s,
    query_start: Int64s,
) -> tuple[LogitRows, Int64s]:
    """Return the rows that need logits, and their indices among the T rows: first the sampled, then the scored ones."""
    sampled = [(index, position) for index, chunk in enumerate(chunks) for position in _sampling_positions(chunk)]
    scored = [
        (index, position)
        for index in scores_prompt[rows].nonzero()[0].tolist()
        for position in _scoring_positions(chunks[index])
    ]
    owners, positions = np.array(sampled + scored, dtype=np.int64).reshape(-1, 2).T
    starts = np.array([chunk.start for chunk in chunks])
    indices = query_start[owners] + positions - starts[owners]
    sequences = [chunks[index].sequence for index in owners.tolist()]
    logit_rows = LogitRows(sequences, rows[owners], np.ascontiguousarray(positions), len(sampled), draft_rows(chunks))
    return logit_rows, indices


def _sampling_positions(chunk: Chunk) -> range:
    """Positions of the chunk that sample a token: the last known one, and those of its draft."""
    end = chunk.start + chunk.length
    return range(end - len(chunk.draft) - 1, end) if chunk.samples else range(0)


def _scoring_positions(chunk: Chunk) -> range:
    """Positions of the chunk that predict a prompt token; empty if the request already has its scores."""
    if chunk.sequence.num_generated:
        return range(0)
    return range(chunk.start, min(chunk.start + chunk.length, chunk.sequence.num_prompt_tokens - 1))
