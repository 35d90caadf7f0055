"""Stage graphs: a replayed decode step equals an eager one, in every bucket; steps run without failed captures."""

from collections.abc import Callable
from dataclasses import replace

import torch

from model.dummy_weights import random_model
from model.forward_batch import ForwardBatch
from model.kv_format import KvDtype
from model.kv_pool import KvPool
from model.mixtral import Mixtral
from model.mixtral_cuda_graphs import (
    CaptureError,
    CudaRecorder,
    EagerRecorder,
    GraphedMixtral,
    GraphRecorder,
    buckets_for,
)
from model.ops.triton.launch import launch_on_device
from tests.gpu.first_light.result import Options, Row
from tests.gpu.first_light.shapes import setting_of
from tests.support.kernels.paged import Running, make_batch

BLOCK_SIZE, TABLE_WIDTH = 16, 8


def compare_replays(options: Options) -> list[Row]:
    """Compare replayed steps, whose kernels may start early, with eager ones, whose kernels wait for each other.

    The same without graphs, and with captures that fail.
    """
    setting = setting_of(replace(options, tiny=True), num_layers=2)
    ops = setting.ops("fp8", deterministic=True)
    early = random_model(setting.config, setting.dtype, setting.device, ops, seed=0)
    plain = Mixtral(early.config, early.weights, ops.launched_by(launch_on_device))
    max_rows = 256 if options.device == "cuda" else 4
    recorder: GraphRecorder = CudaRecorder() if options.device == "cuda" else EagerRecorder()
    kv_dtype: KvDtype = "bfloat16" if options.device == "cuda" else "float32"
    pools = [KvPool(early.config, 2 * max_rows + 1, BLOCK_SIZE, kv_dtype, setting.device) for _ in range(2)]
    graphed = _captured(early, pools[0], recorder, max_rows)
    rows = [_compare(graphed, plain, pools, count, setting.device) for count in buckets_for(max_rows)]
    rows += [
        {**_compare(early, plain, pools, count, setting.device), "case": f"no graph, {count} rows"}
        for count in (1, max_rows)
    ]
    failing = _captured(early, pools[0], FailingRecorder(), max_rows)
    return [*rows, {**_compare(failing, plain, pools, 3, setting.device), "case": "failed captures"}]


class FailingRecorder:
    """Captures fail."""

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        raise CaptureError("as tested")


def _captured(model: Mixtral, pool: KvPool, recorder: GraphRecorder, max_rows: int) -> GraphedMixtral:
    graphed = GraphedMixtral(model, pool, recorder, max_rows, TABLE_WIDTH)
    graphed.capture_all()
    return graphed


def _compare(ours: Mixtral, theirs: Mixtral, pools: list[KvPool], count: int, device: torch.device) -> Row:
    """Compute one step of `count` rows, one less than the bucket if that is possible."""
    num_rows = max(1, count - 1)
    parts = [(Running([index % 30] * 20, [2 * index + 1, 2 * index + 2], 19), 1) for index in range(num_rows)]
    batch = on_device(make_batch(parts, BLOCK_SIZE), device)
    logits, expected = ours.forward(batch, pools[0]), theirs.forward(batch, pools[1])
    is_equal = torch.equal(logits, expected) and torch.equal(pools[0].k[:, 1:], pools[1].k[:, 1:])
    return {"case": f"bucket {count}", "largest_difference": float((logits - expected).abs().max()), "ok": is_equal}


def on_device(batch: ForwardBatch, device: torch.device) -> ForwardBatch:
    tensors = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return replace(batch, **tensors)
