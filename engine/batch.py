"""Turns a step plan into the tensors that the model takes, and says whose logits come back.

Letters: T positions computed in the step, S sequences, M blocks of the longest block table, N rows with logits.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.plan import Chunk, StepPlan
from engine.routing import build_routing
from engine.sequence import Sequence
from model.config import ModelConfig
from model.forward_batch import ForwardBatch

Int64s = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LogitRow:
    """One row of the logits: it predicts the token behind `position`."""

    sequence: Sequence
    position: int
    samples: bool  # else the row scores the prompt token at position + 1


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The model's input, and what each row of its output is for."""

    forward: ForwardBatch
    logit_rows: list[LogitRow]


def build_batch(plan: StepPlan, model: ModelConfig, block_size: int, device: torch.device) -> StepBatch:
    """The rows are the plan's chunks in order, each in ascending positions."""
    chunks = plan.chunks
    lengths = np.array([chunk.length for chunk in chunks], dtype=np.int64)
    starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
    query_start = np.concatenate(([0], lengths.cumsum()))
    positions = _positions(starts, lengths, query_start)
    tables = _padded_tables(chunks)
    owners = np.repeat(np.arange(len(chunks)), lengths)
    slots = tables[owners, positions // block_size] * block_size + positions % block_size
    logit_rows, logit_indices = _logit_rows(chunks, query_start)
    forward = ForwardBatch(
        token_ids=_tensor(_token_ids(chunks), torch.int64, device),
        positions=_tensor(positions, torch.int64, device),
        slot_mapping=_tensor(slots, torch.int64, device),
        query_start=_tensor(query_start, torch.int32, device),
        context_len=_tensor(starts + lengths, torch.int32, device),
        block_tables=_tensor(tables, torch.int32, device),
        logit_rows=_tensor(np.array(logit_indices, dtype=np.int64), torch.int64, device),
        routing=build_routing(chunks, model, device),
    )
    return StepBatch(forward, logit_rows)


def _positions(starts: Int64s, lengths: Int64s, query_start: Int64s) -> Int64s:
    """starts (7, 0), lengths (1, 3) -> 7, 0, 1, 2."""
    return np.arange(query_start[-1]) + np.repeat(starts - query_start[:-1], lengths)


def _padded_tables(chunks: tuple[Chunk, ...]) -> Int64s:
    """[S, M]; the null block fills up."""
    width = max(len(chunk.sequence.block_table) for chunk in chunks)
    tables = np.zeros((len(chunks), width), dtype=np.int64)
    for row, chunk in enumerate(chunks):
        table = chunk.sequence.block_table
        tables[row, : len(table)] = table
    return tables


def _token_ids(chunks: tuple[Chunk, ...]) -> Int64s:
    ids: list[int] = []
    for chunk in chunks:
        ids += chunk.sequence.token_ids[chunk.start : chunk.start + chunk.length]
    return np.array(ids, dtype=np.int64)


def _logit_rows(chunks: tuple[Chunk, ...], query_start: Int64s) -> tuple[list[LogitRow], list[int]]:
    """Whose logits are wanted, and where those rows stand among the T."""
    rows: list[LogitRow] = []
    indices: list[int] = []
    for chunk, first in zip(chunks, query_start.tolist(), strict=False):
        for position in _wanted_positions(chunk):
            last = position == chunk.start + chunk.length - 1
            rows.append(LogitRow(chunk.sequence, position, samples=chunk.samples and last))
            indices.append(first + position - chunk.start)
    return rows, indices


def _wanted_positions(chunk: Chunk) -> range:
    """All that score a prompt token, where the request wants that and was not told yet; the last if it samples."""
    end = chunk.start + chunk.length
    sequence = chunk.sequence
    if sequence.request.params.prompt_logprobs and not sequence.num_generated:
        last_scoring = sequence.num_prompt_tokens - 1
        return range(chunk.start, end if chunk.samples else min(end, last_scoring))
    return range(end - 1, end) if chunk.samples else range(0)


def _tensor(values: Int64s, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).to(device=device, dtype=dtype)
