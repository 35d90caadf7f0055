"""Turns a step plan into the tensors that the model takes, and says whose logits come back.

Letters: T positions computed in the step, S sequences, M blocks of the longest block table, N rows with logits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.plan import Chunk, StepPlan
from engine.request_rows import Int64s, RequestRows
from engine.routing import build_routing
from engine.sequence import Sequence
from engine.transfer import send
from model.config import ModelConfig
from model.forward_batch import ForwardBatch

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LogitRows:
    """The rows of the logits: first those that are sampled, then those that score the prompt token behind them."""

    sequences: list[Sequence]  # N of them, whose rows they are
    rows: Int64s  # [N] their rows in RequestRows
    positions: Int64s  # [N] absolute: each row predicts the token behind
    num_sampled: int


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The model's input, and what each row of its output is for."""

    forward: ForwardBatch
    logits: LogitRows


def build_batch(plan: StepPlan, requests: RequestRows, model: ModelConfig) -> StepBatch:
    """The rows are the plan's chunks in order, each in ascending positions."""
    chunks, device, block_size = plan.chunks, requests.device, requests.block_size
    of_sequences, of_starts, of_lengths, samples, _ = zip(*chunks, strict=True)  # as Chunk has them
    rows = requests.update(list(of_sequences))
    starts, lengths = np.array(of_starts, dtype=np.int64), np.array(of_lengths, dtype=np.int64)
    query_start = np.concatenate(([0], lengths.cumsum()))
    positions = _positions(starts, lengths, query_start)
    tables = requests.tables_of(rows)
    owners = np.repeat(np.arange(len(chunks)), lengths)
    slots = tables[owners, positions // block_size].astype(np.int64) * block_size + positions % block_size
    wanted, logit_rows = _logit_rows(chunks, np.array(samples), requests.scores_prompt, rows, starts, query_start)
    placed = send(rows[owners], device), send(positions, device)
    forward = ForwardBatch(
        token_ids=requests.tokens[placed].long(),
        positions=placed[1],
        slot_mapping=send(slots, device),
        query_start=send(query_start.astype(np.int32), device),
        context_len=send((starts + lengths).astype(np.int32), device),
        block_tables=send(tables, device),
        logit_rows=send(logit_rows, device),
        routing=build_routing(chunks, model, device),
    )
    return StepBatch(forward, wanted)


def _positions(starts: Int64s, lengths: Int64s, query_start: Int64s) -> Int64s:
    """starts (7, 0), lengths (1, 3) -> 7, 0, 1, 2."""
    return np.arange(query_start[-1]) + np.repeat(starts - query_start[:-1], lengths)


def _logit_rows(
    chunks: tuple[Chunk, ...],
    samples: Flags,
    scores_prompt: Flags,
    rows: Int64s,
    starts: Int64s,
    query_start: Int64s,
) -> tuple[LogitRows, Int64s]:
    """Whose logits are wanted, and where those rows stand among the T."""
    sampled = samples.nonzero()[0]
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
