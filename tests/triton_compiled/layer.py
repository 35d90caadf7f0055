"""Run one layer and the head of Mixtral-8x7B on meta tensors, as a step of the engine does."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch

from model.forward_batch import ForwardBatch
from model.ops.interface import FfnWeights, RoutingRequest
from model.ops.triton.ops import TritonOps
from model.ops.triton.packed_weights import WeightFormat
from model.sampling_batch import FloatParam, IntParam, SamplingRows
from tests.support.attention_cases import Heads
from tests.triton_compiled.recording import Launched, LaunchRecorder, empty

CONFIG = replace(
    Heads(32, 8, 128).config, dim=4096, hidden_dim=14336, num_experts=8, experts_per_token=2, vocab_size=32000
)
BLOCK_SIZE = 16
SIZES = [(1, 1), (64, 64), (256, 256), (2048, 4)]  # rows, sequences: every tile size


def run_layer(ops: TritonOps, num_rows: int, num_sequences: int, kv_dtype: torch.dtype) -> None:
    """Run the ops of one layer and the head, and sample."""
    dtype, dim = ops.dtype, CONFIG.dim
    batch = _batch(num_rows, num_sequences)
    metadata = ops.prepare_batch(CONFIG, batch, BLOCK_SIZE)
    x = ops.rms_norm(empty(num_rows, dim, dtype=dtype), empty(dim, dtype=dtype), 1e-5)
    qkv = ops.linear(x, ops.pack_linear(empty(6144, dim, dtype=dtype)))
    row = 132 if kv_dtype == torch.int8 else 128
    k_cache, v_cache = empty(2, 100, BLOCK_SIZE, 8, row, dtype=kv_dtype)
    x = ops.attention(ops.rope_and_store_kv(qkv, k_cache, v_cache, metadata), k_cache, v_cache, metadata)
    for allowed in (None, empty(num_rows, 8, dtype=torch.bool)):
        k, expert_ids = empty(num_rows, dtype=torch.int32), empty(num_rows, 2, dtype=torch.int32)
        x = ops.moe(x, meta_experts(ops), RoutingRequest(k, allowed, expert_ids))
    head = ops.pack_linear(empty(CONFIG.vocab_size, dim, dtype=dtype))
    logits = ops.logits(x, batch.logit_rows, empty(dim, dtype=dtype), 1e-5, head)
    ops.sample(logits, sampling_rows(num_sequences))


def meta_experts(ops: TritonOps) -> object:
    w1, w2 = empty(14336, 4096, dtype=ops.dtype), empty(4096, 14336, dtype=ops.dtype)
    return ops.pack_moe(empty(8, 4096, dtype=ops.dtype), (FfnWeights(w1, w1, w2) for _ in range(8)))


def _batch(num_rows: int, num_sequences: int) -> ForwardBatch:
    rows, small = empty(num_rows, dtype=torch.int64), empty(num_sequences, dtype=torch.int32)
    starts, tables = empty(num_sequences + 1, dtype=torch.int32), empty(num_sequences, 64, dtype=torch.int32)
    return ForwardBatch(rows, rows, rows, starts, small, tables, empty(num_sequences, dtype=torch.int64))


def sampling_rows(count: int, max_logprobs: int = 5) -> SamplingRows:
    int_params, history = empty(count, len(IntParam), dtype=torch.int64), empty(count, 32, dtype=torch.int32)
    nothing = empty(0, dtype=torch.int32), empty(0, dtype=torch.float32)
    return SamplingRows(
        empty(count, len(FloatParam), dtype=torch.float32),
        int_params,
        history,
        *nothing,
        None,
        max_logprobs,
        False,
        False,
    )


def record(
    arch: int,
    dtype: torch.dtype,
    weight_format: WeightFormat,
    kv_dtype: torch.dtype,
    deterministic: bool = False,
    sizes: Sequence[tuple[int, int]] = tuple(SIZES),
) -> list[Launched]:
    """Return the variants of one served combination."""
    recorder = LaunchRecorder(arch)
    for num_rows, num_sequences in sizes:
        run_layer(TritonOps(dtype, weight_format, deterministic, recorder, arch), num_rows, num_sequences, kv_dtype)
    return list(recorder.variants.values())


@cache
def served_variants(arch: int) -> dict[str, Launched]:
    """Return the variants of served combinations of dtype, weights and KV cache, by their text; fewer for old GPUs."""
    half, wide, int8 = torch.bfloat16, torch.float32, torch.int8
    chunks = SIZES[-1:]
    found = [*record(arch, half, "plain", half), *record(arch, half, "fp8", int8)]
    if arch == 90:
        found += record(arch, half, "int8", half)
        found += record(arch, half, "plain", half, True, chunks)
        found += record(arch, half, "fp8", int8, True, chunks)
        found += record(arch, wide, "plain", wide, sizes=chunks)
    return {
        f"{launched} {[getattr(value, 'dtype', 0) for value in launched.arguments]}": launched for launched in found
    }
