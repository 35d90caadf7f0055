"""Time every kernel at several row counts, and compare it with the limits of the machine.

Weights and KV caches have so many copies that no call finds its data in a CPU or GPU cache. Shape letters as in
model/ops/interface.py.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from model.bench.roofline import RooflineProbe, seconds_of
from model.config import ModelConfig
from model.forward_batch import ForwardBatch
from model.kv_format import NUMBER_BYTES, KvDtype, row_bytes
from model.kv_pool import KvPool
from model.mixtral import uniform_routing
from model.ops.interface import FfnWeights, Ops, RoutingRequest, packed_bytes

COLD_BYTES = 192 << 20  # larger than the caches
BLOCK_SIZE = 16
NUM_MATRICES = 64  # largest number of copies
MAX_SEQUENCES = 256  # in a decode batch
INT8_FILL = 60  # four such bytes read as a float32 scale are 0.0115

Calls: TypeAlias = Sequence[Callable[[], object]]


@dataclass(frozen=True)
class Setting:
    """Backend, network and device under test."""

    ops: Ops
    config: ModelConfig
    dtype: torch.dtype
    kv_dtype: KvDtype
    arithmetic: str  # arithmetic of the matrix products: float32, bfloat16 or int8
    device: torch.device
    limits: RooflineProbe

    @property
    def number_bytes(self) -> int:
        return self.dtype.itemsize


@dataclass(frozen=True)
class KernelTime:
    """Result of one kernel on one input. `share`: the shortest possible time divided by the measured one."""

    kernel: str
    rows: int
    context: int | None
    seconds: float
    gigabytes_per_s: float
    gigaops_per_s: float
    share: float


@dataclass(frozen=True)
class Case:
    """A kernel on one input: the same call on different memory, and the bytes and operations of one call."""

    kernel: str
    rows: int
    calls: Calls
    num_bytes: float
    num_operations: float
    arithmetic: str
    context: int | None = None


def distinct_experts(num_experts: int, experts_per_token: int, num_rows: int) -> float:
    """Return the expected number of distinct experts if each row draws k of E uniformly: E (1 - (1 - k/E)^T).

    8 experts, 2 per token: 2.0 for 1 row, 5.5 for 4, 7.9 for 16.
    """
    return num_experts * (1 - (1 - experts_per_token / num_experts) ** num_rows)


def measure_kernels(setting: Setting, rows: Sequence[int], contexts: Sequence[int]) -> Iterator[KernelTime]:
    """Time every case. Each kernel's weights are freed before those of the next kernel are allocated."""
    for cases in (_linear, _moe, _norm, _rotation):
        yield from (_time(setting, case) for case in cases(setting, rows))
    yield from (_time(setting, case) for case in _attention(setting, rows, contexts))


def _time(setting: Setting, case: Case) -> KernelTime:
    seconds = seconds_of(case.calls, setting.device)
    limit_s = setting.limits.now().limit_s(case.num_bytes, case.num_operations, case.arithmetic)
    return KernelTime(
        kernel=case.kernel,
        rows=case.rows,
        context=case.context,
        seconds=seconds,
        gigabytes_per_s=case.num_bytes / seconds / 1e9,
        gigaops_per_s=case.num_operations / seconds / 1e9,
        share=limit_s / seconds,
    )


def _random(setting: Setting, *shape: int) -> Tensor:
    drawn = torch.randn(shape, dtype=setting.dtype, device=setting.device)
    return drawn.mul_(1 / math.sqrt(shape[-1]))


def _copies(num_bytes: int) -> int:
    return min(NUM_MATRICES, math.ceil(COLD_BYTES / num_bytes))


def _linear(setting: Setting, rows: Sequence[int]) -> Iterator[Case]:
    """Yield cases of the qkv projection: D -> (H + 2G) * K."""
    config = setting.config
    outputs = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    first = setting.ops.pack_linear(_random(setting, outputs, config.dim))
    size = packed_bytes(first)
    others = (setting.ops.pack_linear(_random(setting, outputs, config.dim)) for _ in range(_copies(size) - 1))
    weights = [first, *others]
    for count in rows:
        x = _random(setting, count, config.dim)
        calls = [lambda weight=weight, x=x: setting.ops.linear(x, weight) for weight in weights]
        moved = size + count * (config.dim + outputs) * setting.number_bytes
        yield Case("linear", count, calls, moved, 2.0 * count * outputs * config.dim, setting.arithmetic)


def _moe(setting: Setting, rows: Sequence[int]) -> Iterator[Case]:
    config = setting.config
    first = _random_moe(setting)
    size = packed_bytes(first)
    weights = [first, *(_random_moe(setting) for _ in range(_copies(size) - 1))]
    for count in rows:
        x = torch.randn(count, config.dim, dtype=setting.dtype, device=setting.device)
        routing = uniform_routing(config, count, setting.device)
        request = RoutingRequest(routing.experts_per_token, None, routing.expert_ids[0])
        calls = [lambda weight=weight, x=x, request=request: setting.ops.moe(x, weight, request) for weight in weights]
        share = _num_chosen(calls, request) / config.num_experts
        moved = size * share + 2 * count * config.dim * setting.number_bytes
        operations = 6.0 * count * config.experts_per_token * config.dim * config.hidden_dim
        yield Case("moe", count, calls, moved, operations, setting.arithmetic)


def _num_chosen(calls: Calls, request: RoutingRequest) -> float:
    """Make each call once; return how many distinct experts its rows choose, on average."""
    total = 0
    for call in calls:
        call()
        total += int((torch.bincount(request.expert_ids.flatten()) > 0).sum())
    return total / len(calls)


def _random_moe(setting: Setting) -> object:
    config = setting.config
    experts = (
        FfnWeights(
            _random(setting, config.hidden_dim, config.dim),
            _random(setting, config.hidden_dim, config.dim),
            _random(setting, config.dim, config.hidden_dim),
        )
        for _ in range(config.num_experts)
    )
    return setting.ops.pack_moe(_random(setting, config.num_experts, config.dim), experts)


def _norm(setting: Setting, rows: Sequence[int]) -> Iterator[Case]:
    """Yield cases of RMSNorm. Its rows are in the CPU cache, as in a step."""
    dim = setting.config.dim
    weight = torch.ones(dim, dtype=setting.dtype, device=setting.device)
    for count in rows:
        x = _random(setting, count, dim)
        call = [lambda x=x: setting.ops.rms_norm(x, weight, 1e-5)]
        yield Case("rms_norm", count, call, 2 * count * dim * setting.number_bytes, 4.0 * count * dim, "float32")


def _rotation(setting: Setting, rows: Sequence[int]) -> Iterator[Case]:
    """Yield cases of rotation and of storing K and V in the pool."""
    config = setting.config
    for count in rows:
        pool = _pool(setting, count, 1, num_layers=1)
        metadata = setting.ops.prepare_batch(config, _decode_batch(setting, count, 1), BLOCK_SIZE)
        qkv = _random(setting, count, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim)
        call = [
            lambda qkv=qkv, pool=pool, metadata=metadata: setting.ops.rope_and_store_kv(
                qkv, pool.k[0], pool.v[0], metadata
            )
        ]
        rotated = (config.num_heads + config.num_kv_heads) * config.head_dim
        moved = count * setting.number_bytes * (2 * config.num_heads + 4 * config.num_kv_heads) * config.head_dim
        yield Case("rope", count, call, moved, 3.0 * count * rotated, "float32")


def _attention(setting: Setting, rows: Sequence[int], contexts: Sequence[int]) -> Iterator[Case]:
    """Yield cases of decode attention: one row per sequence, each with its own context."""
    config = setting.config
    row = row_bytes(setting.kv_dtype, config.head_dim)
    for context in contexts:
        for count in (count for count in rows if count <= MAX_SEQUENCES):
            visible = min(context, config.window or context)
            size = 2 * count * visible * config.num_kv_heads * row
            pool = _pool(setting, count, context, num_layers=_copies(size))
            metadata = setting.ops.prepare_batch(config, _decode_batch(setting, count, context), BLOCK_SIZE)
            q = _random(setting, count, config.num_heads, config.head_dim)
            calls = [
                lambda k=k, v=v, q=q, metadata=metadata: setting.ops.attention(q, k, v, metadata, q.dtype)
                for k, v in zip(pool.k, pool.v, strict=True)
            ]
            operations = 4.0 * count * visible * config.num_heads * config.head_dim
            arithmetic = "float32" if setting.dtype == torch.float32 else "bfloat16"
            yield Case("attention", count, calls, size, operations, arithmetic, context)


def _pool(setting: Setting, num_sequences: int, context: int, num_layers: int) -> KvPool:
    """Create a pool and write it, because the system maps all unwritten pages to a single one."""
    config = replace(setting.config, num_layers=num_layers)
    num_blocks = 1 + num_sequences * math.ceil(context / BLOCK_SIZE)
    pool = KvPool(config, num_blocks, BLOCK_SIZE, setting.kv_dtype, setting.device)
    for cache in (pool.k, pool.v):
        cache.fill_(INT8_FILL if NUMBER_BYTES[setting.kv_dtype] == 1 else 0.5)
    return pool


def _decode_batch(setting: Setting, num_sequences: int, context: int) -> ForwardBatch:
    """Build a batch of each sequence's last position, with consecutive blocks."""
    device = setting.device
    blocks = math.ceil(context / BLOCK_SIZE)
    tables = 1 + torch.arange(num_sequences * blocks, device=device).view(num_sequences, blocks)
    last = context - 1
    return ForwardBatch(
        token_ids=torch.zeros(num_sequences, dtype=torch.int64, device=device),
        positions=torch.full((num_sequences,), last, dtype=torch.int64, device=device),
        slot_mapping=tables[:, last // BLOCK_SIZE] * BLOCK_SIZE + last % BLOCK_SIZE,
        query_start=torch.arange(num_sequences + 1, dtype=torch.int32, device=device),
        context_len=torch.full((num_sequences,), context, dtype=torch.int32, device=device),
        block_tables=tables.int(),
        logit_rows=torch.arange(num_sequences, device=device),
    )
