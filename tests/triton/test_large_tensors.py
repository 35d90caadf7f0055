"""Offsets beyond 2^31 elements: the last block of a large KV pool, the last expert of large weights.

The tensors are address space without memory: only pages that are written or read exist. The same computation at the
front of small tensors gives the expected bits.
"""

import math
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import pytest
import torch
from torch import Tensor

from model.ops.triton.gemm_tiles import choose_tiling
from model.ops.triton.launch import launch_on_device
from model.ops.triton.moe import TritonExperts, experts
from model.ops.triton.ops import TritonOps
from model.ops.triton.packed_weights import TritonMatrix, WeightFormat, empty_matrix, store
from model.ops.triton.topk_routing import RoutedTiles
from tests.support.kernels.attention_cases import Heads
from tests.support.kernels.paged import Running, make_batch
from tests.triton.cases import DTYPES, summed

HALF = DTYPES[1]
BLOCK_SIZE, HEAD_DIM = 16, 128
MAP_NORESERVE = 0x4000  # of Linux: no memory is promised for pages that are never used
DIM, HIDDEN = 32, 32


def _sparse(device: torch.device, *shape: int, dtype: torch.dtype) -> Tensor:
    """Return a tensor of zeros; on the CPU its pages take memory when they are first used."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype)
    memory = mmap(-1, math.prod(shape) * dtype.itemsize, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


@pytest.mark.parametrize("dtype", [HALF, torch.int8], ids=str)
def test_the_last_block_of_a_large_pool_is_written_and_read(device: torch.device, dtype: torch.dtype) -> None:
    """A decoding row and a chunk, whose keys lie in the last two blocks."""
    heads, row = Heads(2, 1, HEAD_DIM), HEAD_DIM + (4 if dtype == torch.int8 else 0)
    most_offsets = 4 * 2**31 if dtype == torch.int8 else 2**31  # the scales of int8 rows are offsets of 4 bytes
    num_blocks = most_offsets // (BLOCK_SIZE * row) + 8
    ops, qkv, results = TritonOps(HALF), torch.randn(14, 4 * HEAD_DIM).to(HALF), []
    for count in (8, num_blocks):
        k_cache, v_cache = (_sparse(device, count, BLOCK_SIZE, 1, row, dtype=dtype) for _ in range(2))
        assert count == 8 or k_cache[count - 2 :].storage_offset() > 2**31 - 1
        tables = [count - 1], [count - 2]
        parts = [(Running([0] * 13, tables[0], 0), 13), (Running([0], tables[1], 0), 1)]
        batch = make_batch(parts, BLOCK_SIZE)
        metadata = ops.prepare_batch(heads.config, batch, BLOCK_SIZE)
        q = ops.rope_and_store_kv(qkv, k_cache, v_cache, metadata)
        results.append((ops.attention(q, k_cache, v_cache, metadata, q.dtype), k_cache[count - 2 :].clone()))
    small, large = results
    assert torch.equal(small[0], large[0]) and torch.equal(small[1], large[1])
    assert bool(large[0].isfinite().all()) and bool(large[1].any())


def _last_expert(
    device: torch.device, count: int, weight_format: WeightFormat, w13: Tensor, w2: Tensor
) -> TritonExperts:
    """Return `count` experts of zeros, the last of which has these weights."""

    def matrix(weight: Tensor) -> TritonMatrix:
        like = empty_matrix((1, *weight.shape), weight, weight_format)
        values = _sparse(device, count, *like.values.shape[1:], dtype=like.values.dtype)
        has_scale = weight_format != "plain"
        scale = _sparse(device, count, *like.scale.shape[1:], dtype=torch.float32) if has_scale else like.scale
        packed = TritonMatrix(values, scale, weight_format, weight.shape[1])
        store(weight, packed, slice(0, len(weight)), count - 1)
        return packed

    return TritonExperts(matrix(w13), matrix(w2))


@pytest.mark.parametrize("weight_format", ["plain", "fp8"])
def test_the_last_of_many_experts_is_read(device: torch.device, weight_format: WeightFormat) -> None:
    x, w13, w2 = torch.randn(3, DIM).to(HALF), torch.randn(2 * HIDDEN, DIM).to(HALF), torch.randn(DIM, HIDDEN).to(HALF)
    tiling = choose_tiling(3, HALF, weight_format, False)
    per_expert = DIM * (HIDDEN if weight_format == "plain" else 64)  # elements of w2; w13 has twice as many
    outputs = []
    for count in (1, 2**31 // per_expert + 2):
        weights = _last_expert(device, count, weight_format, w13, w2)
        lasts = weights.w13.values[count - 1], weights.w2.values[count - 1]
        assert count == 1 or min(last.storage_offset() for last in lasts) > 2**31 - 1
        pairs = torch.tensor([0, 1, 2] + [3] * (tiling.rows - 3), dtype=torch.int32)
        ids = torch.full((3, 1), count - 1, dtype=torch.int32)
        routing = RoutedTiles(ids, torch.ones(3, 1), pairs, torch.tensor([count - 1], dtype=torch.int32))
        outputs.append(summed(experts(launch_on_device, x, weights, routing, tiling), x))
    assert torch.equal(outputs[0], outputs[1]) and bool(outputs[1].any())
