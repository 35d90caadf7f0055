"""Capture decode steps as CUDA graphs and replay them: the host launches one graph instead of about 500 kernels.

A graph repeats the same kernels on the same memory. So each step is first copied into static tensors, padded to the
next bucket of rows and of block table width. Padding rows use no experts, and their K and V go to the null block, which
is never read. Steps that a graph cannot represent (prompts, switched-off experts) run without one.
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
NARROWEST_TABLE = 8  # blocks; wider tables are padded to a power of two

Key = tuple[int, int, int]  # rows, table width, Kmax


class GraphRecorder(Protocol):
    """Interface of recorders, which repeat work on static tensors."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        """Return the tensor for the result, and a function that repeats the work and writes its result there."""


class EagerRecorder:
    """Recorder that calls the work again, for tests on devices without graphs."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        result = work()
        return result, lambda: result.copy_(work())


class CudaRecorder:
    """Recorder of CUDA graphs. They never run concurrently, so all share one memory pool for intermediate results."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        """Run the work once before the capture, because kernels cannot be compiled or loaded during one."""
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
    """Captured step of one shape, with its static inputs and output."""

    batch: ForwardBatch  # static tensors
    routing: Routing  # of `batch`
    logits: Tensor  # [rows of the bucket, V]
    replay: Callable[[], object]


class GraphedMixtral(Mixtral):
    """Network that replays its decode steps over one KV pool. Captures a shape when it first occurs."""

    def __init__(self, model: Mixtral, kv_pool: KvPool, recorder: GraphRecorder) -> None:
        super().__init__(model.config, model.weights, model.ops)
        self._kv_pool = kv_pool
        self._recorder = recorder
        self._captured: dict[Key, CapturedStep] = {}

    @torch.no_grad()
    def forward(self, batch: ForwardBatch, kv_pool: KvPool) -> Tensor:
        """Compute one step, like Mixtral.forward. The logits are overwritten by the next step."""
        if kv_pool is not self._kv_pool or not _is_decode(batch):
            return super().forward(batch, kv_pool)
        routing = batch.routing or uniform_routing(self.config, len(batch.token_ids), batch.token_ids.device)
        key = _key(batch, routing)
        captured = self._captured.get(key)
        if captured is None:
            captured = self._captured[key] = self._capture(key, batch, routing)
        _fill(captured.batch, captured.routing, batch, routing)
        captured.replay()
        routing.expert_ids.copy_(captured.routing.expert_ids[:, : len(batch.token_ids)])
        return captured.logits[: len(batch.logit_rows)]

    def _capture(self, key: Key, batch: ForwardBatch, routing: Routing) -> CapturedStep:
        """Capture a step of this shape; computing it once more afterwards is harmless."""
        static, static_routing = _static_step(key, self.config.num_layers, batch.token_ids.device)
        _fill(static, static_routing, batch, routing)
        forward = super().forward
        logits, replay = self._recorder.record(lambda: forward(static, self._kv_pool))
        return CapturedStep(static, static_routing, logits, replay)


def _is_decode(batch: ForwardBatch) -> bool:
    """Check that a graph can represent the step.

    It can if there is one row per sequence, at most one logit row of each, no more rows than the largest bucket, no
    mask of experts and no `finite`.
    """
    num_rows = len(batch.token_ids)
    is_masked = batch.routing is not None and batch.routing.masks is not None
    is_plain = not is_masked and batch.finite is None
    return num_rows == len(batch.context_len) <= ROW_BUCKETS[-1] and len(batch.logit_rows) <= num_rows and is_plain


def _key(batch: ForwardBatch, routing: Routing) -> Key:
    """Return the bucket: 5 rows with 11 blocks run as 8 rows with 16 blocks."""
    rows = next(bucket for bucket in ROW_BUCKETS if bucket >= len(batch.token_ids))
    width = max(NARROWEST_TABLE, 1 << (batch.block_tables.shape[1] - 1).bit_length())
    return rows, width, routing.expert_ids.shape[2]


def _static_step(key: Key, num_layers: int, device: torch.device) -> tuple[ForwardBatch, Routing]:
    """Return static tensors for a step, filled with padding rows: position 0, null block, no experts."""
    rows, width, max_k = key
    longs, ints = torch.zeros(4, rows, dtype=torch.int64, device=device), torch.int32
    routing = Routing(
        experts_per_token=torch.zeros(rows, dtype=ints, device=device),
        masks=None,
        mask_rows=None,
        expert_ids=torch.full((num_layers, rows, max_k), -1, dtype=ints, device=device),
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


def _fill(static: ForwardBatch, static_routing: Routing, batch: ForwardBatch, routing: Routing) -> None:
    """Copy the step's rows to the front of the static tensors, and padding behind them."""
    num_rows, (_, width) = len(batch.token_ids), batch.block_tables.shape
    for to, values, padding in (
        (static.token_ids, batch.token_ids, 0),
        (static.positions, batch.positions, 0),
        (static.slot_mapping, batch.slot_mapping, 0),
        (static.context_len, batch.context_len, 1),
        (static.logit_rows, batch.logit_rows, 0),
        (static_routing.experts_per_token, routing.experts_per_token, 0),
    ):
        to[: len(values)].copy_(values)
        to[len(values) :].fill_(padding)
    static.block_tables.zero_()
    static.block_tables[:num_rows, :width].copy_(batch.block_tables)
