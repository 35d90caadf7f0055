"""Input of decode steps, kept between them: while the same requests decode, only positions and tokens change."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from engine.execution.adapters import AdapterStore
from engine.execution.device_transfer import to_device
from engine.execution.draft_rows import DraftRows
from engine.execution.experts.gate_logits import gate_rows
from engine.execution.experts.routing import Routed, build_routing
from engine.execution.persistent_batch import Int64s, PersistentBatch, view_of
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import Chunk
from model.config import ModelConfig
from model.forward_batch import ForwardBatch, GateRows


@dataclass(frozen=True, slots=True)
class LogitRows:
    """The rows of the logits: first the sampled rows, then those that score the next prompt token.

    A chunk with a draft of m tokens has m + 1 sampled rows, one after the other. Two steps without drafts share `rows`,
    the same object, only if they sample one row of each of the same sequences and score none.
    """

    sequences: list[Sequence]  # N, the owner of each row
    rows: Int64s  # [N] row of each owner in PersistentBatch
    positions: Int64s  # [N] absolute; each row predicts the next token
    num_sampled: int
    drafted: tuple[DraftRows, ...] = ()


@dataclass(frozen=True, slots=True)
class InputBatch:
    """The model's input and the owners of its rows of logits."""

    forward: ForwardBatch
    logits: LogitRows
    routed: Routed | None  # of `forward`; None for a network without experts
    has_prompt_rows: bool  # True if there are rows that sample nothing
    reports_experts: bool  # True if a request reports the experts of its positions
    is_overwritten: bool  # True if a later step may write its numbers to the same arrays


class DecodeBatch:
    """One row for each of S sequences, in the order of the plan.

    On a CPU, which computes a step when it is launched, all steps share one InputBatch, and each writes its numbers to
    the same arrays. On a GPU, where a step in flight may still read them, each step gets copies; only the array of the
    experts' ids is one for all steps, which the GPU computes one after the other.
    """

    def __init__(
        self,
        chunks: tuple[Chunk, ...],
        rows: Int64s,
        requests: PersistentBatch,
        model: ModelConfig,
        adapters: AdapterStore,
    ) -> None:
        count, device = len(rows), requests.device
        self.rows = rows
        self._requests = requests
        self._device = device
        self._positions, self._slots, self._token_ids = np.empty((3, count), dtype=np.int64)
        self._context_len = np.empty(count, dtype=np.int32)
        written = self._positions, self._slots, self._token_ids, self._context_len
        self._views = [view_of(array) for array in written]
        self._history = None if requests.host_tokens is None else view_of(requests.host_tokens)
        self._row_indices: list[int] = rows.tolist()
        self._logits = LogitRows([chunk.sequence for chunk in chunks], rows, self._positions, count)
        self._logit_rows = to_device(np.arange(count), device)
        self._query_start = to_device(np.arange(count + 1, dtype=np.int32), device)
        self._routing = build_routing(chunks, model, device)
        self._adapters = adapters.rows_of(chunks, device)
        self._model = model
        self._reports_experts = any(chunk.sequence.experts for chunk in chunks)
        self._gates: GateRows | None = None
        self._gate_counts = [0] * count  # of each chunk's rows among these
        self._last: InputBatch | None = None

    def at(self, chunks: tuple[Chunk, ...]) -> InputBatch:
        """Return the input of the step that computes the same sequences' next positions. On a CPU it is valid until the
        next call."""
        _, device_tables = self._requests.tables_of(self.rows)
        self._write(chunks)
        if self._reports_experts:
            self._update_gates(chunks)
        last, on_cpu = self._last, self._device.type == "cpu"
        if (
            last is None
            or not on_cpu
            or last.forward.block_tables is not device_tables
            or last.forward.gates is not self._gates
        ):
            forward, logits = self._forward(device_tables), self._logits
            if not on_cpu:
                logits = replace(logits, positions=self._positions.copy())
            last = self._last = InputBatch(
                forward,
                logits,
                Routed.of(forward),
                has_prompt_rows=False,
                reports_experts=self._reports_experts,
                is_overwritten=True,
            )
        return last

    def _update_gates(self, chunks: tuple[Chunk, ...]) -> None:
        """Keep the rows whose gate logits are reported, as long as these are the same rows."""
        counts = [chunk.num_gate_rows for chunk in chunks]
        if counts != self._gate_counts:
            self._gates, self._gate_counts = gate_rows(chunks, self._model, self._device), counts

    def _write(self, chunks: tuple[Chunk, ...]) -> None:
        """Write what differs from step to step.

        In a loop over memory views: the network leaves nothing of numpy in the caches, so that the first call of each
        of its functions takes 5 to 40 us.
        """
        size, history = self._requests.block_size, self._history
        positions, slots, token_ids, context_len = self._views
        for index, chunk in enumerate(chunks):
            position = chunk.start
            positions[index] = position
            context_len[index] = position + 1
            slots[index] = chunk.sequence.block_table[position // size] * size + position % size
            if history is not None:
                token_ids[index] = history[self._row_indices[index], position]

    def _forward(self, block_tables: torch.Tensor) -> ForwardBatch:
        requests, device = self._requests, self._device
        on_cpu = requests.host_tokens is not None
        return ForwardBatch(
            token_ids=to_device(self._token_ids, device) if on_cpu else requests.tokens_at(self.rows, self._positions),
            positions=to_device(self._positions, device),
            slot_mapping=to_device(self._slots, device),
            query_start=self._query_start,
            context_len=to_device(self._context_len, device),
            block_tables=block_tables,
            logit_rows=self._logit_rows,
            routing=self._routing,
            adapters=self._adapters,
            gates=self._gates,
        )
