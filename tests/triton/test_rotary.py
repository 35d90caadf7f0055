"""Rotation and storage in the KV cache, against float64 and against the reference's rows."""

from dataclasses import replace

import pytest
import torch

from model.ops.reference.kv_int8 import as_cached, as_numbers
from model.ops.reference.ops import ReferenceOps
from model.ops.triton.ops import TritonOps
from model.ops.triton.pending_sum import Parts
from tests.support.kernels import float64_oracle as oracle
from tests.support.kernels.attention_cases import Heads
from tests.support.kernels.paged import Running, make_batch
from tests.triton.cases import DTYPES, ROUNDING, assert_close, in_rows

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.mark.parametrize("heads", [Heads(1, 1, 2), Heads(4, 2, 64), Heads(6, 2, 128), Heads(9, 3, 20)], ids=str)
@pytest.mark.parametrize("int8", [False, True], ids=["plain", "int8"])
def test_rotation_and_storage(dtype: torch.dtype, heads: Heads, int8: bool) -> None:
    """Queries and keys are rotated, keys and values are in their slots, and every other slot is unchanged."""
    if int8 and heads.head_dim % 4:
        heads = Heads(heads.num_heads, heads.num_kv_heads, 4)
    block_size, num_blocks = 4, 8
    runs = [(Running([0] * 13, [7, 2, 5, 1], 9), 4), (Running([0] * 300, [0] * 74 + [3], 299), 1)]
    batch = make_batch(runs, block_size)
    total = heads.num_heads + 2 * heads.num_kv_heads
    qkv = torch.randn(5, total * heads.head_dim).to(dtype)
    cached = torch.int8 if int8 else dtype
    row = as_cached(torch.zeros(heads.head_dim), cached).shape[-1]
    before = torch.randint(-9, 9, (2, num_blocks, block_size, heads.num_kv_heads, row)).to(cached)
    caches = before.clone()
    ops = TritonOps(dtype)
    q = ops.rope_and_store_kv(qkv, caches[0], caches[1], ops.prepare_batch(heads.config, batch, block_size))
    q_in, k_in, v_in = qkv.view(5, total, -1).split_with_sizes(
        [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads], dim=1
    )
    assert_close(q, oracle.rotate(q_in, batch.positions, heads.config.rope_theta), dtype, 10)
    rows, rows_before = (torch.stack([in_rows(cache) for cache in pair]) for pair in (caches, before))
    slots = rows.flatten(1, 2)[:, batch.slot_mapping]
    exact = oracle.rotate(k_in, batch.positions, heads.config.rope_theta)
    tolerance = 4e-3 if int8 else 10 * ROUNDING[dtype]
    assert float((as_numbers(slots[0]) - exact).norm() / exact.norm()) < 2 * tolerance
    assert torch.equal(slots[1], as_cached(v_in, cached))
    others = torch.ones(num_blocks * block_size, dtype=torch.bool)
    others[batch.slot_mapping] = False
    assert torch.equal(rows.flatten(1, 2)[:, others], rows_before.flatten(1, 2)[:, others])


def test_scaled_angles_are_the_references(dtype: torch.dtype) -> None:
    config = replace(Heads(2, 1, 8).config, rope_divisors=(1.0, 1.5, 4.0, 8.0), rope_factor=1.25)
    batch = make_batch([(Running([0] * 300, [0] * 74 + [3], 299), 1)], 4)
    cos, sin = TritonOps(dtype).prepare_batch(config, batch, 4).angles
    exact = ReferenceOps().prepare_batch(config, batch, 4)
    assert torch.allclose(cos, exact.cos[:, 0, :4]) and torch.allclose(sin, exact.sin[:, 0, :4])
    unscaled, _ = TritonOps(dtype).prepare_batch(replace(config, rope_divisors=()), batch, 4).angles
    assert not torch.allclose(cos, unscaled)


def test_int8_rows_that_are_small_or_not_finite_are_stored_as_the_reference_stores_them(dtype: torch.dtype) -> None:
    heads = Heads(1, 1, 8)
    batch = make_batch([(Running([0] * 6, [1, 2], 0), 6)], 4)
    qkv = torch.randn(6, 24).to(dtype)
    qkv[0] = 0.0
    qkv[1, 17], qkv[2, 18], qkv[3, 9] = float("nan"), float("inf"), float("nan")
    qkv[4, 22], qkv[5, 15] = float("nan"), float("inf")  # the other halves of a value and a key
    stored: list[torch.Tensor] = []
    for ops in (TritonOps(dtype), ReferenceOps()):
        caches = torch.zeros(2, 3, 4, 1, 12, dtype=torch.int8)
        ops.rope_and_store_kv(qkv, caches[0], caches[1], ops.prepare_batch(heads.config, batch, 4))
        stored.append(caches)
    ours = as_numbers(torch.stack([in_rows(cache) for cache in stored[0]])[:, 1:, :, 0])
    reference = as_numbers(stored[1][:, 1:, :, 0])
    assert torch.equal(ours.isnan().any(-1), reference.isnan().any(-1))
    assert torch.allclose(ours, reference, atol=0.05, equal_nan=True)


def test_queries_and_keys_in_parts_are_summed_in_order(dtype: torch.dtype) -> None:
    """qkv in float32 parts gives the bits of their rounded sum."""
    heads = Heads(4, 2, 8)
    batch = make_batch([(Running([0] * 3, [1], 0), 3)], 4)
    parts = torch.randn(3, 3, 64)
    ops, results = TritonOps(dtype), []
    for qkv in (Parts(parts, None, None), ((parts[0] + parts[1]) + parts[2]).to(dtype)):
        caches = torch.zeros(2, 2, 4, 2, 8, dtype=dtype)
        q = ops.rope_and_store_kv(qkv, caches[0], caches[1], ops.prepare_batch(heads.config, batch, 4))
        results.append((q, caches))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert bool(results[0][1].any())
