"""Run steps of Mixtral-8x7B with one layer on meta tensors, as the engine does."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch

from model.forward_batch import ForwardBatch, Routing
from model.kv_format import KvDtype
from model.kv_pool import KvPool
from model.mixtral import LayerWeights, Mixtral, MixtralWeights
from model.ops.interface import FfnWeights, RoutingRequest
from model.ops.triton.kernel_variants import KernelVariant
from model.ops.triton.ops import TritonOps
from model.ops.triton.packed_weights import WeightFormat
from model.sampling_batch import FloatParam, IntParam, SamplingRows
from tests.support.kernels.attention_cases import Heads
from tests.triton_compiled.recording import LaunchRecorder, empty

CONFIG = replace(
    Heads(32, 8, 128).config, dim=4096, hidden_dim=14336, num_experts=8, experts_per_token=2, vocab_size=32000
)
BLOCK_SIZE, META = 16, torch.device("meta")
SIZES = [(1, 1), (64, 64), (256, 256), (2048, 4)]  # rows, sequences: every tile size


def run_step(ops: TritonOps, num_rows: int, num_sequences: int, kv_dtype: KvDtype, num_layers: int = 1) -> None:
    """Run the network with and without a mask of experts, and sample."""
    model = meta_model(ops, num_layers)
    pool = KvPool(model.config, 100, BLOCK_SIZE, kv_dtype, META)
    batch = meta_batch(num_rows, num_sequences, num_layers)
    assert batch.routing is not None
    masks = empty(2, num_layers, CONFIG.num_experts, dtype=torch.bool)
    model.forward(replace(batch, routing=replace(batch.routing, masks=masks, mask_rows=batch.positions)), pool)
    ops.sample(model.forward(batch, pool), sampling_rows(num_sequences))


def run_separate_moe(ops: TritonOps, num_rows: int) -> None:
    """Run the experts with a gate of their own, as `smoe bench kernels` does, and sum their outputs, as ranks do."""
    k, ids = empty(num_rows, dtype=torch.int32), empty(num_rows, 2, dtype=torch.int32)
    x = empty(num_rows, CONFIG.dim, dtype=ops.dtype)
    ops.summed(ops.moe(x, meta_experts(ops), RoutingRequest(k, None, ids)))


def meta_model(ops: TritonOps, num_layers: int) -> Mixtral:
    """Return Mixtral-8x7B with fewer layers, without numbers."""
    config, dim = replace(CONFIG, num_layers=num_layers), CONFIG.dim
    norm, embedding = empty(dim, dtype=ops.dtype), empty(CONFIG.vocab_size, dim, dtype=ops.dtype)
    qkv, output = (ops.pack_linear(empty(outputs, dim, dtype=ops.dtype)) for outputs in (6144, dim))
    layer = LayerWeights(norm, qkv, output, norm, meta_experts(ops))
    return Mixtral(config, MixtralWeights(embedding, [layer] * num_layers, norm, ops.pack_linear(embedding)), ops)


def meta_experts(ops: TritonOps) -> object:
    w1, w2 = empty(14336, 4096, dtype=ops.dtype), empty(4096, 14336, dtype=ops.dtype)
    return ops.pack_moe(empty(8, 4096, dtype=ops.dtype), (FfnWeights(w1, w1, w2) for _ in range(8)))


def meta_batch(num_rows: int, num_sequences: int, num_layers: int) -> ForwardBatch:
    """Return a step of `num_rows` rows of `num_sequences` sequences, each with one logit row."""
    rows, small = empty(num_rows, dtype=torch.int64), empty(num_sequences, dtype=torch.int32)
    starts, tables = empty(num_sequences + 1, dtype=torch.int32), empty(num_sequences, 64, dtype=torch.int32)
    ids = empty(num_layers, num_rows, CONFIG.experts_per_token, dtype=torch.int32)
    routing = Routing(empty(num_rows, dtype=torch.int32), None, None, ids)
    logit_rows = empty(num_sequences, dtype=torch.int64)
    return ForwardBatch(rows, rows, rows, starts, small, tables, logit_rows, routing)


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
    kv_dtype: KvDtype,
    deterministic: bool = False,
    sizes: Sequence[tuple[int, int]] = tuple(SIZES),
) -> list[KernelVariant]:
    """Return the variants of one served combination."""
    recorder = LaunchRecorder(arch)
    for num_rows, num_sequences in sizes:
        run_step(TritonOps(dtype, weight_format, deterministic, recorder, arch), num_rows, num_sequences, kv_dtype)
    return list(recorder.variants.values())


@cache
def served_variants(arch: int) -> dict[str, KernelVariant]:
    """Return the variants of served combinations of dtype, weights and KV cache, by their text; fewer for old GPUs."""
    half, wide, chunks = torch.bfloat16, torch.float32, SIZES[-1:]
    found = [*record(arch, half, "plain", "bfloat16"), *record(arch, half, "fp8", "int8")]
    if arch == 90:
        found += record(arch, half, "int8", "bfloat16")
        found += record(arch, half, "plain", "bfloat16", True, chunks)
        found += record(arch, half, "fp8", "int8", True, chunks)
        found += record(arch, wide, "plain", "float32", sizes=chunks)
        separate = LaunchRecorder(arch)
        run_separate_moe(TritonOps(half, launch=separate), 1)
        found += [launched for launched in separate.variants.values() if launched.name in ("gate_kernel", "sum_kernel")]
    return {
        f"{launched} {[getattr(value, 'dtype', 0) for value in launched.arguments]}": launched for launched in found
    }
