"""Turns a step plan into the tensors that the model takes, and says whose logits come back.

Letters: T positions computed in the step, S sequences, M blocks of the longest block table, N rows with logits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.execution.decode_batch import DecodeBatch, LogitRows
from engine.execution.device_transfer import to_device
from engine.execution.expert_routing import build_routing
from engine.execution.persistent_batch import Int64s, PersistentBatch
from engine.scheduling.step_plan import Chunk, StepPlan
from model.config import ModelConfig
from model.forward_batch import ForwardBatch

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class InputBatch:
    """The model's input, and what each row of its output is for."""

    forward: ForwardBatch
    logits: LogitRows


class BatchBuilder:
    """Makes the batch of each step. What stays from one decode step to the next is kept."""

    def __init__(self, requests: PersistentBatch, model: ModelConfig) -> None:
        self._requests = requests
        self._model = model
        self._standing: DecodeBatch | None = None

    def build(self, plan: StepPlan) -> InputBatch:
        """The rows are the plan's chunks in order, each in ascending positions."""
        of_sequences, of_starts, of_lengths, samples, _ = zip(*plan.chunks, strict=True)  # as Chunk has them
        rows = self._requests.update(list(of_sequences))
        starts = np.array(of_starts, dtype=np.int64)
        if max(of_lengths) > 1 or not all(samples):
            return build_batch(plan.chunks, rows, starts, np.array(of_lengths), self._requests, self._model)
        if self._standing is None or self._standing.rows is not rows:
            self._standing = DecodeBatch(plan.chunks, rows, self._requests, self._model)
        return InputBatch(*self._standing.at(starts))


def build_batch(
    chunks: tuple[Chunk, ...],
    rows: Int64s,
    starts: Int64s,
    lengths: Int64s,
    requests: PersistentBatch,
    model: ModelConfig,
) -> InputBatch:
    """Of chunks of any kind. rows, starts and lengths are theirs."""
    device, block_size = requests.device, requests.block_size
    query_start = np.concatenate(([0], lengths.cumsum()))
    positions = _positions(starts, lengths, query_start)
    tables, sent_tables = requests.tables_of(rows)
    owners = np.repeat(np.arange(len(chunks)), lengths)
    slots = tables[owners, positions // block_size].astype(np.int64) * block_size + positions % block_size
    wanted, logit_rows = _logit_rows(chunks, requests.scores_prompt, rows, starts, query_start)
    forward = ForwardBatch(
        token_ids=requests.tokens_at(rows[owners], positions),
        positions=to_device(positions, device),
        slot_mapping=to_device(slots, device),
        query_start=to_device(query_start.astype(np.int32), device),
        context_len=to_device((starts + lengths).astype(np.int32), device),
        block_tables=sent_tables,
        logit_rows=to_device(logit_rows, device),
        routing=build_routing(chunks, model, device),
    )
    return InputBatch(forward, wanted)


def _positions(starts: Int64s, lengths: Int64s, query_start: Int64s) -> Int64s:
    """starts (7, 0), lengths (1, 3) -> 7, 0, 1, 2."""
    return np.arange(query_start[-1]) + np.repeat(starts - query_start[:-1], lengths)


def _logit_rows(
    chunks: tuple[Chunk, ...],
    scores_prompt: Flags,
    rows: Int64s,
    starts: Int64s,
    query_start: Int64s,
) -> tuple[LogitRows, Int64s]:
    """Whose logits are wanted, and where those rows stand among the T."""
    sampled = np.array([chunk.samples for chunk in chunks]).nonzero()[0]
    scored = [
        (index, position)
        for index in scores_prompt[rows].nonzero()[0].tolist()
        for position in _scoring_positions(chunks[index])
    ]
    of_scored = np.array(scored, dtype=np.int64).reshape(-1, 2)
    owners = np.concatenate((sampled, of_scored[:, 0]))
    last = starts[sampled] + (query_start[1:] - query_start[:-1])[sampled] - 1
    positions = np.concatenate((last, of_scored[:, 1]))
    indices = query_start[owners] + positions - starts[owners]
    sequences = [chunks[index].sequence for index in owners.tolist()]
    return LogitRows(sequences, rows[owners], positions, len(sampled)), indices


def _scoring_positions(chunk: Chunk) -> range:
    """All that predict a prompt token, where the request was not told yet."""
    if chunk.sequence.num_generated:
        return range(0)
    return range(chunk.start, min(chunk.start + chunk.length, chunk.sequence.num_prompt_tokens - 1))
