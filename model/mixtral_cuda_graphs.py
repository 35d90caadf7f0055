"""Capture decode steps as CUDA graphs and replay them: the host launches one graph instead of about 500 kernels.

A graph repeats the same kernels on the same memory. So each step is first copied into static tensors, padded to the
next bucket of rows. Padding rows use no experts, and their K and V go to the null block. All graphs share the static
tensors and one buffer of logits. Steps that a graph cannot represent (prompts, switched-off experts, more experts per
token than the model's own) run without one, and so do buckets whose capture failed.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.forward_batch import ForwardBatch, Routing
from model.kv_pool import KvPool
from model.mixtral import Mixtral, uniform_routing

ROW_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)

log = logging.getLogger("smoe.engine")


class CaptureError(Exception):
    """A capture failed. The device still computes, and the work can run without a graph."""


class GraphRecorder(Protocol):
    """Interface of recorders, which repeat work on static tensors."""

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        """Return a function that repeats the work. Raises CaptureError."""


class EagerRecorder:
    """Recorder that calls the work again: to compile all kernels without capturing them, and for tests."""

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        work()
        return work


class CudaRecorder:
    """Recorder of CUDA graphs. They never run concurrently, so all share one memory pool for intermediate results.

    All warm-ups and captures use one stream: cuBLAS keeps a workspace for each stream that it has seen.
    """

    def __init__(self, in_group: bool = False) -> None:
        """`in_group`: the work contains gathers. NCCL's watchdog thread asks for events at any time, which a capture
        forbids to all threads unless it forbids it to its own alone."""
        self._mode = "thread_local" if in_group else "global"
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        """Run the work once before the capture, because kernels cannot be compiled or loaded during one."""
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.synchronize()
        current, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=self._mode):
                work()
        except Exception as error:
            torch.cuda.set_stream(current)  # torch leaves the capture's stream current if the end of a capture fails
            raise CaptureError(f"{type(error).__name__}: {error}") from error
        return graph.replay


def recorder_for(device: torch.device, *, is_eager: bool, in_group: bool) -> GraphRecorder:
    """Return the recorder of a device; an eager one only compiles kernels, or stands for a GPU's on a CPU."""
    return EagerRecorder() if is_eager or device.type == "cpu" else CudaRecorder(in_group)


@dataclass(frozen=True)
class StaticStep:
    """Input and output of captured steps, in tensors that keep their addresses."""

    batch: ForwardBatch
    routing: Routing  # of `batch`
    logits: Tensor  # [rows, V] float32

    def first_rows(self, rows: int) -> "StaticStep":
        """Return a view of the first rows, which has the same addresses."""
        batch, routing = self.batch, self.routing
        narrow = Routing(routing.experts_per_token[:rows], None, None, routing.expert_ids[:, :rows])
        return StaticStep(
            ForwardBatch(
                token_ids=batch.token_ids[:rows],
                positions=batch.positions[:rows],
                slot_mapping=batch.slot_mapping[:rows],
                query_start=batch.query_start[: rows + 1],
                context_len=batch.context_len[:rows],
                block_tables=batch.block_tables[:rows],
                logit_rows=batch.logit_rows[:rows],
                routing=narrow,
            ),
            narrow,
            self.logits[:rows],
        )

    def fill(self, batch: ForwardBatch, routing: Routing) -> None:
        """Copy a step's rows to the front and padding behind them.

        Entries of block tables behind a row's context keep old values; no kernel reads them.
        """
        num_rows, (_, width) = len(batch.token_ids), batch.block_tables.shape
        for to, values, padding in (
            (self.batch.token_ids, batch.token_ids, 0),
            (self.batch.positions, batch.positions, 0),
            (self.batch.slot_mapping, batch.slot_mapping, 0),
            (self.batch.context_len, batch.context_len, 1),
            (self.batch.logit_rows, batch.logit_rows, 0),
            (self.routing.experts_per_token, routing.experts_per_token, 0),
        ):
            to[: len(values)].copy_(values)
            to[len(values) :].fill_(padding)
        self.batch.block_tables[:num_rows, :width].copy_(batch.block_tables)
        self.batch.block_tables[num_rows:, :1].zero_()


class GraphedMixtral(Mixtral):
    """Network that replays its decode steps over one KV pool. Buckets are captured by capture_all()."""

    def __init__(
        self, model: Mixtral, kv_pool: KvPool, recorder: GraphRecorder, max_rows: int, table_width: int
    ) -> None:
        """Allocate the static tensors. `max_rows`: the most rows of a decode step; `table_width`: the most blocks of a
        sequence."""
        super().__init__(model.config, model.weights, model.ops, model.group)
        self.on_layer = model.on_layer
        self._kv_pool = kv_pool
        self._recorder = recorder
        self._static = _static_step(self, buckets_for(max_rows)[-1], table_width)
        self._captured: dict[int, tuple[StaticStep, Callable[[], object]]] = {}  # by bucket; without failed captures

    def capture_all(self, on_captured: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Capture every bucket, the largest first, whose memory the others use again. Calls on_captured(done, total).

        A bucket whose capture fails is logged, and runs without a graph.
        """
        buckets = buckets_for(len(self._static.batch.token_ids))
        for done, rows in enumerate(reversed(buckets)):
            on_captured(done, len(buckets))
            self._capture(rows)
            self.on_layer()
        on_captured(len(buckets), len(buckets))

    @torch.no_grad()
    def forward(self, batch: ForwardBatch, kv_pool: KvPool) -> Tensor:
        """Compute one step, like Mixtral.forward. The logits are overwritten by the next step."""
        captured = self._captured.get(self._bucket_of(batch)) if kv_pool is self._kv_pool else None
        if captured is None:
            return super().forward(batch, kv_pool)
        static, replay = captured
        num_rows = len(batch.token_ids)
        routing = batch.routing or uniform_routing(self.config, num_rows, batch.token_ids.device)
        static.fill(batch, routing)
        replay()
        self.on_layer()
        routing.expert_ids.copy_(static.routing.expert_ids[:, :num_rows, : routing.expert_ids.shape[2]])
        return static.logits[: len(batch.logit_rows)]

    def _bucket_of(self, batch: ForwardBatch) -> int:
        """Return the bucket of a step, 8 for 5 rows, or 0 if no graph represents it.

        A graph has one row per sequence, at most one logit row of each, no mask of experts, no `finite`, no
        `hidden` and no `gates`.
        """
        num_rows, (most_rows, width) = len(batch.token_ids), self._static.batch.block_tables.shape
        is_decode = num_rows == len(batch.context_len) <= most_rows and len(batch.logit_rows) <= num_rows
        if not is_decode or batch.block_tables.shape[1] > width:
            return 0
        if batch.finite is not None or batch.hidden is not None or batch.gates is not None:
            return 0
        routing, max_k = batch.routing, self._static.routing.expert_ids.shape[2]
        if routing is not None and (routing.masks is not None or routing.expert_ids.shape[2] > max_k):
            return 0
        return next(bucket for bucket in ROW_BUCKETS if bucket >= num_rows)

    def _capture(self, rows: int) -> None:
        """Capture a step of padding rows. Its kernels are those of every step with these rows."""
        static = self._static.first_rows(rows)
        replay: Callable[[], object] | None = None
        forward = super().forward
        try:
            replay = self._recorder.record(lambda: static.logits.copy_(forward(static.batch, self._kv_pool)))
        except CaptureError as error:
            summary = str(error).partition("\n")[0]
            log.warning("decode steps of up to %d rows run without a CUDA graph: %s", rows, summary)
        if self._have_all_ranks(replay is not None) and replay is not None:
            self._captured[rows] = static, replay

    def _have_all_ranks(self, is_captured: bool) -> bool:
        """Return whether every rank of the group has captured a bucket: all use a graph for a step, or none."""
        size, device = self.group.cut.size, self._static.logits.device
        if size == 1 or device.type == "meta":
            return is_captured
        own = torch.tensor([[is_captured]], dtype=torch.float32, device=device)
        return bool(self.group.gather(own, size, 1).all())


def buckets_for(max_rows: int) -> tuple[int, ...]:
    """Return the buckets up to the one that holds `max_rows`, or all: 10 rows need 1, 2, 4, 8, 16."""
    return tuple(bucket for index, bucket in enumerate(ROW_BUCKETS) if not index or ROW_BUCKETS[index - 1] < max_rows)


def _static_step(model: Mixtral, rows: int, table_width: int) -> StaticStep:
    """Allocate a step of padding rows: position 0, null block, no experts."""
    device, config, ints = model.weights.embedding.device, model.config, torch.int32
    routing = Routing(
        experts_per_token=torch.zeros(rows, dtype=ints, device=device),
        masks=None,
        mask_rows=None,
        expert_ids=torch.full((config.num_layers, rows, config.experts_per_token), -1, dtype=ints, device=device),
    )
    batch = ForwardBatch(
        token_ids=torch.zeros(rows, dtype=torch.int64, device=device),
        positions=torch.zeros(rows, dtype=torch.int64, device=device),
        slot_mapping=torch.zeros(rows, dtype=torch.int64, device=device),
        query_start=torch.arange(rows + 1, dtype=ints, device=device),
        context_len=torch.ones(rows, dtype=ints, device=device),
        block_tables=torch.zeros(rows, table_width, dtype=ints, device=device),
        logit_rows=torch.zeros(rows, dtype=torch.int64, device=device),
        routing=routing,
    )
    return StaticStep(batch, routing, torch.empty(rows, config.vocab_size, device=device))
