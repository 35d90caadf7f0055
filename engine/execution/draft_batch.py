"""Input of steps with drafts on a CPU, in which each request decodes: all numbers are known to the host.

Steps of as many rows share their arrays, and each writes its numbers there in loops over lists: the network leaves
nothing of numpy and torch in the caches, so that the first call of each of their functions takes 5 to 60 us, and
build_batch() needs some thirty of them. Letters: T rows of the step, S sequences, V vocabulary.
"""

from array import array
from dataclasses import dataclass, replace

import numpy as np
import torch

from engine.execution.adapters import AdapterStore
from engine.execution.decode_batch import InputBatch, LogitRows
from engine.execution.draft_rows import draft_rows
from engine.execution.experts.gate_logits import gate_rows
from engine.execution.experts.routing import Routed, build_routing
from engine.execution.persistent_batch import Int32s, Int64s, PersistentBatch, view_of
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import Chunk
from engine.types import Request
from model.config import ModelConfig
from model.forward_batch import ForwardBatch
from model.mixtral import uniform_routing

INT64, INT32 = "q", "i"  # codes of array.array
LOGITS_STEP = 64  # rows by which the memory of the logits grows


def is_decode_step(chunks: tuple[Chunk, ...]) -> bool:
    """Return whether each chunk is the last known token of a request, and its draft if it has one."""
    return all(chunk.samples and chunk.length == 1 + len(chunk.draft) for chunk in chunks)


@dataclass(slots=True)
class _Kept:
    """Arrays of the steps of T rows, and views of them that are written in each."""

    rows: Int64s  # as in LogitRows
    positions: Int64s
    forward: ForwardBatch
    routed: Routed | None
    views: "list[memoryview[int]]"  # of token ids, positions, slots and rows, [T] each
    query_start: "memoryview[int]"
    context_len: "memoryview[int]"


class DraftBatches:
    """Builds the inputs of decode steps with drafts. Each is valid until the next call."""

    def __init__(self, requests: PersistentBatch, model: ModelConfig, adapters: AdapterStore) -> None:
        """`adapters`: those that requests may have."""
        self._requests = requests
        self._model = model
        self._adapters = adapters
        self._kept: dict[int, _Kept] = {}  # by T; all of as many sequences
        self._num_sequences = 0
        self._logits = torch.empty(0, model.vocab_size)  # of all steps
        self._max_rows = 0  # of the logits

    def at(self, chunks: tuple[Chunk, ...], rows: Int64s) -> InputBatch:
        """Build the input of a decode step with drafts, as build_batch() does. `rows`: of the chunks in the persistent
        batch, [S]."""
        owners: list[Sequence] = []
        for chunk in chunks:
            owners += [chunk.sequence] * chunk.length
        kept = self._arrays(len(owners), len(chunks))
        self._write(kept, chunks, rows.tolist())
        tables = self._requests.tables_of(rows)[1]
        if kept.forward.block_tables is not tables:
            kept.forward = replace(kept.forward, block_tables=tables)
        forward, routed = kept.forward, kept.routed
        if any(self._has_options(chunk.sequence.request) for chunk in chunks):
            forward = self._with_options(forward, chunks)
            routed = Routed.of(forward)
        logits = LogitRows(owners, kept.rows, kept.positions, len(owners), draft_rows(chunks))
        reports_experts = any(chunk.sequence.experts for chunk in chunks)
        return InputBatch(
            forward, logits, routed, has_prompt_rows=False, reports_experts=reports_experts, is_overwritten=True
        )

    def _arrays(self, num_rows: int, num_sequences: int) -> _Kept:
        """Return the arrays of steps of T rows."""
        if num_rows > self._max_rows:
            self._max_rows = -(-num_rows // LOGITS_STEP) * LOGITS_STEP
            self._kept.clear()
            self._logits = torch.empty(0)  # frees the smaller memory first
            self._logits = torch.empty(self._max_rows, self._model.vocab_size)
        if num_sequences != self._num_sequences:
            self._kept.clear()
            self._num_sequences = num_sequences
        kept = self._kept.get(num_rows)
        if kept is None:
            kept = self._kept[num_rows] = self._new_arrays(num_rows, num_sequences)
        return kept

    def _new_arrays(self, num_rows: int, num_sequences: int) -> _Kept:
        token_ids, positions, slots, rows = (np.empty(num_rows, dtype=np.int64) for _ in range(4))
        query_start = np.zeros(num_sequences + 1, dtype=np.int32)
        context_len, device = np.empty(num_sequences, dtype=np.int32), self._requests.device
        forward = ForwardBatch(
            token_ids=torch.from_numpy(token_ids),
            positions=torch.from_numpy(positions),
            slot_mapping=torch.from_numpy(slots),
            query_start=torch.from_numpy(query_start),
            context_len=torch.from_numpy(context_len),
            block_tables=torch.empty(0, dtype=torch.int32),
            logit_rows=torch.arange(num_rows),
            routing=uniform_routing(self._model, num_rows, device) if self._model.num_experts else None,
            logits=self._logits[:num_rows],
        )
        views = [_view(numbers) for numbers in (token_ids, positions, slots, rows)]
        written = _view(query_start)[1:], _view(context_len)
        return _Kept(rows, positions, forward, Routed.of(forward), views, *written)

    def _write(self, kept: _Kept, chunks: tuple[Chunk, ...], rows: list[int]) -> None:
        """Write what differs from step to step."""
        numbers: tuple[list[int], ...] = [], [], [], []
        token_ids, positions, slots, owner_rows = numbers
        ends, context_len = [], []
        for chunk, row in zip(chunks, rows, strict=True):
            sequence, end = chunk.sequence, chunk.start + chunk.length
            token_ids.append(sequence.token_ids[chunk.start])
            token_ids += chunk.draft
            positions += range(chunk.start, end)
            slots += sequence.slots(chunk.start, chunk.length, self._requests.block_size)
            owner_rows += [row] * chunk.length
            ends.append(len(positions))
            context_len.append(end)
        for view, values in zip(kept.views, numbers, strict=True):
            view[:] = array(INT64, values)
        kept.query_start[:] = array(INT32, ends)
        kept.context_len[:] = array(INT32, context_len)

    def _has_options(self, request: Request) -> bool:
        """Return whether a request chooses its experts, has an adapter or reports gate logits."""
        k = request.experts_per_token
        has_own_k = k is not None and k != self._model.experts_per_token
        return bool(has_own_k or request.expert_mask or request.adapter or request.gate_logits)

    def _with_options(self, forward: ForwardBatch, chunks: tuple[Chunk, ...]) -> ForwardBatch:
        """Return the batch with what few requests have."""
        device = self._requests.device
        return replace(
            forward,
            routing=build_routing(chunks, self._model, device),
            adapters=self._adapters.rows_of(chunks, device),
            gates=gate_rows(chunks, self._model, device),
        )


def _view(numbers: Int64s | Int32s) -> "memoryview[int]":
    """Return a view that takes the numbers of an array.array of the same code."""
    as_bytes = view_of(numbers).cast("B")
    return as_bytes.cast("q") if numbers.dtype == np.int64 else as_bytes.cast("i")
