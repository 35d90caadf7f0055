"""Input of steps with drafts on a CPU, in which each request decodes: all numbers are known to the host.

All steps share one memory, of which each uses the beginning, and write their numbers there in loops over lists: the
network leaves nothing of numpy and torch in the caches, so that the first call of each of their functions takes 5 to 60
us, and build_batch() needs some thirty of them. Letters: T rows of the step, S sequences, L layers, V vocabulary.
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
from model.forward_batch import ForwardBatch, Routing

INT64, INT32 = "q", "i"  # codes of array.array
ROWS_STEP = 64  # rows by which the memory grows
MAX_SIZES = 512  # sizes of steps, T and S, whose batches are kept


def is_decode_step(chunks: tuple[Chunk, ...]) -> bool:
    """Return whether each chunk is the last known token of a request, and its draft if it has one."""
    return all(chunk.samples and chunk.length == 1 + len(chunk.draft) for chunk in chunks)


class _Memory:
    """Arrays for steps of at most `num_rows` rows, tensors of the same memory, and views that are written in each."""

    def __init__(self, num_rows: int, model: ModelConfig) -> None:
        token_ids, positions, slots, self.rows = (np.empty(num_rows, dtype=np.int64) for _ in range(4))
        query_start, context_len = np.zeros(num_rows + 1, dtype=np.int32), np.empty(num_rows, dtype=np.int32)
        self.num_rows = num_rows
        self.positions = positions
        self.views = [_view(numbers) for numbers in (token_ids, positions, slots, self.rows)]
        self.query_start, self.context_len = _view(query_start)[1:], _view(context_len)
        self._of_rows = [torch.from_numpy(numbers) for numbers in (token_ids, positions, slots)]
        self._of_sequences = torch.from_numpy(query_start), torch.from_numpy(context_len)
        self._logit_rows = torch.arange(num_rows)
        self._experts_per_token = torch.full((num_rows,), model.experts_per_token, dtype=torch.int32)
        self._expert_shape = model.num_layers, model.experts_per_token
        self._expert_ids = torch.empty(model.num_layers * num_rows * model.experts_per_token, dtype=torch.int32)
        self._has_experts = model.num_experts > 0
        self._logits = torch.empty(num_rows, model.vocab_size)

    def batch(self, num_rows: int, num_sequences: int) -> ForwardBatch:
        """Return the batch of T rows of S sequences, without block tables."""
        token_ids, positions, slots = (tensor[:num_rows] for tensor in self._of_rows)
        query_start, context_len = self._of_sequences
        return ForwardBatch(
            token_ids=token_ids,
            positions=positions,
            slot_mapping=slots,
            query_start=query_start[: num_sequences + 1],
            context_len=context_len[:num_sequences],
            block_tables=torch.empty(0, dtype=torch.int32),
            logit_rows=self._logit_rows[:num_rows],
            routing=self._routing(num_rows) if self._has_experts else None,
            logits=self._logits[:num_rows],
        )

    def _routing(self, num_rows: int) -> Routing:
        """Return the model's own number of experts for each row."""
        num_layers, k = self._expert_shape
        expert_ids = self._expert_ids[: num_layers * num_rows * k].view(num_layers, num_rows, k)
        return Routing(self._experts_per_token[:num_rows], None, None, expert_ids)


@dataclass(slots=True)
class _Kept:
    """Batch of the steps of T rows of S sequences, and arrays of the same memory, as in LogitRows."""

    rows: Int64s
    positions: Int64s
    forward: ForwardBatch
    routed: Routed | None


class DraftBatches:
    """Builds the inputs of decode steps with drafts. Each is valid until the next call."""

    def __init__(self, requests: PersistentBatch, model: ModelConfig, adapters: AdapterStore) -> None:
        """`adapters`: those that requests may have."""
        self._requests = requests
        self._model = model
        self._adapters = adapters
        self._memory: _Memory | None = None  # None before the first step
        self._kept: dict[tuple[int, int], _Kept] = {}  # by T and S
        self._tables_address = 0  # of the memory whose beginning is the block tables of all kept batches
        self._rows: Int64s | None = None  # of the last step: the same object for the same requests
        self._have_options = self._report_experts = False  # some of these requests

    def at(self, chunks: tuple[Chunk, ...], rows: Int64s) -> InputBatch:
        """Build the input of a decode step with drafts, as build_batch() does. `rows`: of the chunks in the persistent
        batch, [S]."""
        owners: list[Sequence] = []
        for chunk in chunks:
            owners += [chunk.sequence] * chunk.length
        memory = self._memory_for(len(owners))
        self._write(memory, chunks, rows.tolist())
        tables = self._requests.tables_of(rows)[1]
        if tables.data_ptr() != self._tables_address:  # batches of rare sizes would keep the old memory alive
            self._kept.clear()
            self._tables_address = tables.data_ptr()
        kept = self._kept_for(memory, len(owners), len(chunks))
        if kept.forward.block_tables is not tables:
            kept.forward = replace(kept.forward, block_tables=tables)
        if self._rows is not rows:
            self._have_options = any(self._has_options(chunk.sequence.request) for chunk in chunks)
            self._report_experts = any(chunk.sequence.experts for chunk in chunks)
            self._rows = rows
        forward, routed = kept.forward, kept.routed
        if self._have_options:
            forward = self._with_options(forward, chunks)
            routed = Routed.of(forward)
        return InputBatch(
            forward,
            LogitRows(owners, kept.rows, kept.positions, len(owners), draft_rows(chunks)),
            routed,
            has_prompt_rows=False,
            reports_experts=self._report_experts,
            is_overwritten=True,
        )

    def _memory_for(self, num_rows: int) -> _Memory:
        """Return memory for T rows."""
        if self._memory is None or num_rows > self._memory.num_rows:
            self._kept.clear()
            self._memory = None  # frees the smaller one first
            self._memory = _Memory(-(-num_rows // ROWS_STEP) * ROWS_STEP, self._model)
        return self._memory

    def _kept_for(self, memory: _Memory, num_rows: int, num_sequences: int) -> _Kept:
        """Return the batch of steps of T rows of S sequences."""
        kept = self._kept.get((num_rows, num_sequences))
        if kept is None:
            if len(self._kept) == MAX_SIZES:
                self._kept.clear()
            forward = memory.batch(num_rows, num_sequences)
            kept = _Kept(memory.rows[:num_rows], memory.positions[:num_rows], forward, Routed.of(forward))
            self._kept[num_rows, num_sequences] = kept
        return kept

    def _write(self, memory: _Memory, chunks: tuple[Chunk, ...], rows: list[int]) -> None:
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
        for view, values in zip(memory.views, numbers, strict=True):
            view[: len(values)] = array(INT64, values)
        memory.query_start[: len(ends)] = array(INT32, ends)
        memory.context_len[: len(ends)] = array(INT32, context_len)

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
