"""Input of decode steps, kept between them: while the same requests decode, only positions and tokens change."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from engine.execution.adapters import AdapterStore
from engine.execution.device_transfer import to_device
from engine.execution.draft_rows import DraftRows
from engine.execution.experts.routing import Routed, build_routing
from engine.execution.persistent_batch import Int32s, Int64s, PersistentBatch
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import Chunk
from model.config import ModelConfig
from model.forward_batch import ForwardBatch


@dataclass(frozen=True, slots=True)
class LogitRows:
    """The rows of the logits: first the sampled rows, then those that score the next prompt token.

    A chunk with a draft of m tokens has m + 1 sampled rows, one after the other. Two steps share `rows`, the same
    object, only if they sample one row of each of the same sequences and score none.
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
        self._order = np.arange(count)
        self._positions, self._slots, self._token_ids = np.empty((3, count), dtype=np.int64)
        self._context_len = np.empty(count, dtype=np.int32)
        self._logits = LogitRows([chunk.sequence for chunk in chunks], rows, self._positions, count)
        self._logit_rows = to_device(self._order, device)
        self._query_start = to_device(np.arange(count + 1, dtype=np.int32), device)
        self._routing = build_routing(chunks, model, device)
        self._adapters = adapters.rows_of(chunks, device)
        self._last: InputBatch | None = None

    def at(self, positions: Int64s) -> InputBatch:
        """Return the input of the step that computes these positions [S]. On a CPU it is valid until the next call."""
        tables, device_tables = self._requests.tables_of(self.rows)
        self._write(positions, tables)
        last = self._last
        if last is None or last.forward.block_tables is not device_tables or self._device.type != "cpu":
            forward, logits = self._forward(device_tables), self._logits
            if self._device.type != "cpu":
                logits = replace(logits, positions=self._positions.copy())
            last = self._last = InputBatch(forward, logits, Routed.of(forward), has_prompt_rows=False)
        return last

    def _write(self, positions: Int64s, tables: Int32s) -> None:
        """Write what differs from step to step."""
        size, host_tokens = self._requests.block_size, self._requests.host_tokens
        self._positions[:] = positions
        np.add(positions, 1, out=self._context_len)
        blocks, offsets = np.divmod(positions, size)
        np.multiply(tables[self._order, blocks], size, out=self._slots, dtype=np.int64)
        self._slots += offsets
        if host_tokens is not None:
            self._token_ids[:] = host_tokens[self.rows, positions]

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
        )
