"""Input of decode steps, kept between them: while the same requests decode, only positions and tokens change."""

from dataclasses import dataclass

import numpy as np
import torch

from engine.execution.adapters import AdapterStore
from engine.execution.device_transfer import to_device
from engine.execution.draft_rows import DraftRows
from engine.execution.experts.routing import build_routing
from engine.execution.persistent_batch import Int64s, PersistentBatch
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import Chunk
from model.config import ModelConfig
from model.forward_batch import ForwardBatch, Routing


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


class DecodeBatch:
    """One row for each of S sequences, in the order of the plan."""

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
        self._sequences = [chunk.sequence for chunk in chunks]
        self._requests = requests
        self._order = np.arange(count)
        self._logit_rows = to_device(self._order, device)
        self._query_start = to_device(np.arange(count + 1, dtype=np.int32), device)
        self._routing = build_routing(chunks, model, device)
        self._adapters = adapters.rows_of(chunks, device)

    def at(self, positions: Int64s) -> tuple[ForwardBatch, LogitRows]:
        """Build the input of the step that computes these positions [S]."""
        requests = self._requests
        device, block_size = requests.device, requests.block_size
        tables, device_tables = requests.tables_of(self.rows)
        blocks, offsets = np.divmod(positions, block_size)
        forward = ForwardBatch(
            token_ids=requests.tokens_at(self.rows, positions),
            positions=to_device(positions, device),
            slot_mapping=to_device(tables[self._order, blocks].astype(np.int64) * block_size + offsets, device),
            query_start=self._query_start,
            context_len=to_device((positions + 1).astype(np.int32), device),
            block_tables=device_tables,
            logit_rows=self._logit_rows,
            routing=self._new_routing(),
            adapters=self._adapters,
        )
        return forward, LogitRows(self._sequences, self.rows, positions, len(self.rows))

    def _new_routing(self) -> Routing | None:
        """Return the routing with a new output tensor: the expert ids of the step before are read later."""
        routing = self._routing
        if routing is None:
            return None
        return Routing(
            routing.experts_per_token, routing.masks, routing.mask_rows, torch.empty_like(routing.expert_ids)
        )
