"""Every kernel compiles for A100 and H100, as the backend launches it for Mixtral-8x7B; no GPU is needed."""

import importlib
import multiprocessing
import os
import pkgutil
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

import model.ops.triton
from model.forward_batch import ForwardBatch
from model.kv_pool import DTYPES as KV_DTYPES
from model.ops.interface import FfnWeights, RoutingRequest
from model.ops.triton.ops import TritonOps
from model.ops.triton.packed_weights import WeightFormat
from model.sampling_batch import FloatParam, IntParam, SamplingRows
from tests.support.native_cases import Heads
from tests.triton_compiled.recording import (
    MAX_SHARED_BYTES,
    Compiled,
    Launched,
    LaunchRecorder,
    compile_for,
    kernels_of,
)

META = torch.device("meta")
CONFIG = replace(
    Heads(32, 8, 128).config, dim=4096, hidden_dim=14336, num_experts=8, experts_per_token=2, vocab_size=32000
)
ARCHS = (80, 90)  # A100, H100
DECODES, CHUNKS = [(1, 1), (64, 64)], [(2048, 4)]  # rows, sequences


def _run(ops: TritonOps, num_rows: int, num_sequences: int, dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
    """Run the ops of one layer and the head on meta tensors."""
    batch = _batch(num_rows, num_sequences)
    metadata = ops.prepare_batch(CONFIG, batch, 16)
    x = ops.rms_norm(_empty(num_rows, CONFIG.dim, dtype=dtype), _empty(CONFIG.dim, dtype=dtype), 1e-5)
    qkv = ops.linear(x, ops.pack_linear(_empty(6144, CONFIG.dim, dtype=dtype)))
    row = 132 if kv_dtype == torch.int8 else 128
    k_cache, v_cache = _empty(2, 100, 16, 8, row, dtype=kv_dtype)
    x = ops.attention(ops.rope_and_store_kv(qkv, k_cache, v_cache, metadata), k_cache, v_cache, metadata)
    packed = _experts(ops, dtype)
    for allowed in (None, _empty(num_rows, 8, dtype=torch.bool)):
        k, expert_ids = _empty(num_rows, dtype=torch.int32), _empty(num_rows, 2, dtype=torch.int32)
        x = ops.moe(x, packed, RoutingRequest(k, allowed, expert_ids))
    head = ops.pack_linear(_empty(CONFIG.vocab_size, CONFIG.dim, dtype=dtype))
    logits = ops.logits(x, batch.logit_rows, _empty(CONFIG.dim, dtype=dtype), 1e-5, head)
    ops.sample(logits, _sampling_rows(num_sequences))


def _experts(ops: TritonOps, dtype: torch.dtype) -> object:
    w1, w2 = _empty(14336, 4096, dtype=dtype), _empty(4096, 14336, dtype=dtype)
    return ops.pack_moe(_empty(8, 4096, dtype=dtype), (FfnWeights(w1, w1, w2) for _ in range(8)))


def _batch(num_rows: int, num_sequences: int) -> ForwardBatch:
    rows, small = _empty(num_rows, dtype=torch.int64), _empty(num_sequences, dtype=torch.int32)
    starts, tables = _empty(num_sequences + 1, dtype=torch.int32), _empty(num_sequences, 64, dtype=torch.int32)
    return ForwardBatch(rows, rows, rows, starts, small, tables, _empty(num_sequences, dtype=torch.int64))


def _sampling_rows(count: int) -> SamplingRows:
    int_params, history = _empty(count, len(IntParam), dtype=torch.int64), _empty(count, 32, dtype=torch.int32)
    nothing = _empty(0, dtype=torch.int32), _empty(0, dtype=torch.float32)
    return SamplingRows(
        _empty(count, len(FloatParam), dtype=torch.float32), int_params, history, *nothing, None, 5, False, False
    )


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


@cache
def launched() -> list[Launched]:
    """Record the launches of the served combinations of dtype, weights and KV cache, for one row, many rows, chunks."""
    recorder = LaunchRecorder()
    wide, half, int8 = torch.float32, torch.bfloat16, KV_DTYPES["int8"]
    combinations: list[tuple[torch.dtype, WeightFormat, bool, torch.dtype, list[tuple[int, int]]]] = [
        (half, "plain", False, half, DECODES + CHUNKS),
        (half, "int8", False, int8, DECODES + CHUNKS),
        (half, "fp8", False, half, DECODES + CHUNKS),
        (half, "plain", True, half, CHUNKS),
        (half, "int8", True, int8, CHUNKS),
        (wide, "plain", False, wide, CHUNKS),
    ]
    for dtype, weight_format, deterministic, kv_dtype, sizes in combinations:
        ops = TritonOps(dtype, weight_format, deterministic, recorder)
        for num_rows, num_sequences in sizes:
            _run(ops, num_rows, num_sequences, dtype, kv_dtype)
    return list(recorder.launched.values())


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[int, int], Future[Compiled]]]:
    """Each launch compiled for each architecture, by (index of the launch, architecture); on several cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        indexes = range(len(launched()))  # recorded before the fork: kernels cannot be sent to a process
        with ProcessPoolExecutor(min(4, os.cpu_count() or 1), multiprocessing.get_context("fork")) as processes:
            yield {(i, arch): processes.submit(_compile, i, arch) for arch in ARCHS for i in indexes}


def _compile(index: int, arch: int) -> Compiled:
    return compile_for(launched()[index], arch)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_compiles_without_spills_and_within_shared_memory(
    arch: int, compiled: dict[tuple[int, int], Future[Compiled]]
) -> None:
    for index, launch in enumerate(launched()):
        resources = compiled[index, arch].result()
        assert resources.spill_bytes == 0, f"{launch} spills {resources.spill_bytes} bytes"
        assert resources.shared_bytes <= MAX_SHARED_BYTES[arch], f"{launch} needs {resources.shared_bytes} bytes"


def test_no_kernel_is_left_out() -> None:
    modules = [module.name for module in pkgutil.iter_modules(model.ops.triton.__path__)]
    kernels = {name for module in modules for name in kernels_of(importlib.import_module(f"model.ops.triton.{module}"))}
    assert len(kernels) >= 9
    assert {launch.name for launch in launched()} == kernels
