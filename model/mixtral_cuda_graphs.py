"""Decode steps recorded once and replayed: the host starts one graph instead of some 500 kernels.

A graph repeats the same kernels on the same memory, so a step is copied into standing tensors first, padded to the next
bucket of rows and of table width. Padding rows belong to no sequence: they take no expert, and their K and V go to the
null block, which nobody reads. What a graph cannot hold (prompts, switched-off experts) runs as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.forward_batch import ForwardBatch, Routing
from model.kv_pool import KvPool
from model.mixtral import Mixtral, uniform_routing

ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NARROWEST_TABLE = 8  # blocks; wider ones in powers of two

Key = tuple[int, int, int]  # rows, table width, most experts of a row


class GraphRecorder(Protocol):
    """How work on standing tensors is repeated."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        """Work's result, and what does the work again, into the same result. The result is valid after a repetition."""


class EagerRecorder:
    """Repeats by calling: for devices without graphs, and for tests."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        result = work()
        return result, lambda: result.copy_(work())


class CudaRecorder:
    """CUDA graphs, which share one pool of memory for their intermediate results: they never run side by side."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        """Works once beforehand, as kernels cannot be compiled and loaded while a graph is recorded."""
        torch.cuda.synchronize()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
            work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work()
        return result, graph.replay


@dataclass(frozen=True)
class CapturedStep:
    """A step of one shape."""

    batch: ForwardBatch  # standing
    routing: Routing  # of the batch
    logits: Tensor  # [rows of the bucket, V]
    replay: Callable[[], object]


class GraphedMixtral(Mixtral):
    """A network whose decode steps over one KV pool are replayed. A shape is recorded when it is first met."""

    def __init__(self, model: Mixtral, kv_pool: KvPool, recorder: GraphRecorder) -> None:
        super().__init__(model.config, model.weights, model.ops)
        self._kv_pool = kv_pool
        self._recorder = recorder
        self._recorded: dict[Key, CapturedStep] = {}

    @torch.no_grad()
    def forward(self, batch: ForwardBatch, kv_pool: KvPool) -> Tensor:
        """As Mixtral.forward. The logits are good until the next step."""
        if kv_pool is not self._kv_pool or not _is_decode(batch):
            return super().forward(batch, kv_pool)
        routing = batch.routing or uniform_routing(self.config, len(batch.token_ids), batch.token_ids.device)
        key = _key(batch, routing)
        recorded = self._recorded.get(key)
        if recorded is None:
            recorded = self._recorded[key] = self._record(key, batch, routing)
        _fill(recorded.batch, recorded.routing, batch, routing)
        recorded.replay()
        routing.expert_ids.copy_(recorded.routing.expert_ids[:, : len(batch.token_ids)])
        return recorded.logits[: len(batch.logit_rows)]

    def _record(self, key: Key, batch: ForwardBatch, routing: Routing) -> CapturedStep:
        """Over a step of the shape, which is computed meanwhile; to compute it again changes nothing."""
        standing, standing_routing = _standing(key, self.config.num_layers, batch.token_ids.device)
        _fill(standing, standing_routing, batch, routing)
        forward = super().forward
        logits, replay = self._recorder.record(lambda: forward(standing, self._kv_pool))
        return CapturedStep(standing, standing_routing, logits, replay)


def _is_decode(batch: ForwardBatch) -> bool:
    """One row per sequence and at most one wanted of each, no more than the largest bucket, all experts switched on."""
    num_rows = len(batch.token_ids)
    is_masked = batch.routing is not None and batch.routing.masks is not None
    is_plain = not is_masked and batch.finite is None
    return num_rows == len(batch.context_len) <= ROW_BUCKETS[-1] and len(batch.logit_rows) <= num_rows and is_plain


def _key(batch: ForwardBatch, routing: Routing) -> Key:
    """The bucket: 5 rows with 11 blocks are a step of 8 rows with 16."""
    rows = next(bucket for bucket in ROW_BUCKETS if bucket >= len(batch.token_ids))
    width = max(NARROWEST_TABLE, 1 << (batch.block_tables.shape[1] - 1).bit_length())
    return rows, width, routing.expert_ids.shape[2]


def _standing(key: Key, num_layers: int, device: torch.device) -> tuple[ForwardBatch, Routing]:
    """A step of padding rows alone: position 0 of nobody, in the null block, without experts."""
    rows, width, most = key
    longs, ints = torch.zeros(4, rows, dtype=torch.int64, device=device), torch.int32
    routing = Routing(
        experts_per_token=torch.zeros(rows, dtype=ints, device=device),
        masks=None,
        mask_rows=None,
        expert_ids=torch.full((num_layers, rows, most), -1, dtype=ints, device=device),
    )
    batch = ForwardBatch(
        token_ids=longs[0],
        positions=longs[1],
        slot_mapping=longs[2],
        query_start=torch.arange(rows + 1, dtype=ints, device=device),
        context_len=torch.ones(rows, dtype=ints, device=device),
        block_tables=torch.zeros(rows, width, dtype=ints, device=device),
        logit_rows=longs[3],
        routing=routing,
    )
    return batch, routing


def _fill(standing: ForwardBatch, standing_routing: Routing, batch: ForwardBatch, routing: Routing) -> None:
    """The step's rows first, padding behind them."""
    num_rows, (_, width) = len(batch.token_ids), batch.block_tables.shape
    for to, values, padding in (
        (standing.token_ids, batch.token_ids, 0),
        (standing.positions, batch.positions, 0),
        (standing.slot_mapping, batch.slot_mapping, 0),
        (standing.context_len, batch.context_len, 1),
        (standing.logit_rows, batch.logit_rows, 0),
        (standing_routing.experts_per_token, routing.experts_per_token, 0),
    ):
        to[: len(values)].copy_(values)
        to[len(values) :].fill_(padding)
    standing.block_tables.zero_()
    standing.block_tables[:num_rows, :width].copy_(batch.block_tables)
