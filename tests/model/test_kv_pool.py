"""The KV pool: its shape, blocks of zeros, and memory that is taken only when it is written."""

from dataclasses import replace

import psutil
import pytest
import torch

from model.kv_format import KvDtype
from model.kv_pool import KvPool
from tests.support.kernels.attention_cases import Heads
from tests.support.kernels.kv_tiles import in_rows
from tests.support.kernels.paged import CPU

CONFIG = replace(Heads(32, 8, 128).config, num_layers=32)


@pytest.mark.parametrize(("dtype", "row"), [("float32", 128), ("bfloat16", 128), ("int8", 132)])
def test_a_pool_has_the_shape_of_its_format_and_starts_as_zeros(dtype: KvDtype, row: int) -> None:
    pool = KvPool(replace(CONFIG, num_layers=3), 5, 16, dtype, CPU)
    assert pool.k.shape == pool.v.shape == (3, 5, 16, 8, row)
    assert not pool.k.any() and not pool.v.any()


def test_zeroed_blocks_are_zeros_in_every_layer_and_the_others_stay() -> None:
    pool = KvPool(replace(CONFIG, num_layers=3), 5, 4, "float32", CPU)
    pool.k.fill_(1.0)
    pool.v.fill_(2.0)
    pool.zero_blocks(torch.tensor([3, 1]))
    for cache in (pool.k, pool.v):
        assert cache.flatten(2).any(-1).tolist() == [[True, False, True, False, True]] * 3


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_zeroed_slots_are_zeros_in_every_layer_and_the_others_stay(dtype: KvDtype) -> None:
    pool = KvPool(replace(CONFIG, num_layers=3), 3, 4, dtype, CPU)
    pool.k.fill_(1)
    pool.v.fill_(2)
    pool.zero_slots(torch.tensor([2 * 4 + 1, 5]))
    for cache in (pool.k, pool.v):
        zeros = (cache == 0).flatten(3).all(-1)  # [layers, blocks, slots]
        assert zeros.flatten(1).nonzero()[:, 1].tolist() == [5, 9] * 3
        assert (cache == 0).sum() == zeros.sum() * cache[0, 0, 0].numel()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_zeroed_slots_are_zeros_in_tiles_and_the_others_stay(dtype: KvDtype) -> None:
    pool = KvPool(replace(CONFIG, num_layers=3), 3, 32, dtype, CPU, "tiles")
    pool.k.fill_(1)
    pool.v.fill_(2)
    pool.zero_slots(torch.tensor([2 * 32 + 17, 6, 31]))
    for cache, is_keys in ((pool.k, True), (pool.v, False)):
        zeros = torch.stack([(in_rows(layer, is_keys) == 0).flatten(2).all(-1) for layer in cache])
        assert zeros.flatten(1).nonzero()[:, 1].tolist() == [6, 31, 81] * 3
        assert (cache == 0).sum() == zeros.sum() * cache[0, 0, 0].numel()


def test_zeroed_slots_are_zeros_where_scales_lie_behind_all_numbers_and_the_others_stay() -> None:
    pool = KvPool(replace(CONFIG, num_layers=3), 3, 4, "int8", CPU, "split")
    pool.k.fill_(1)
    pool.v.fill_(2)
    pool.zero_slots(torch.tensor([2 * 4 + 1, 5]))
    for cache in (pool.k, pool.v):
        blocks = cache.flatten(2)
        numbers, scales = (
            blocks[..., : 4 * 8 * 128].unflatten(-1, (4, -1)),
            blocks[..., 4 * 8 * 128 :].unflatten(-1, (4, -1)),
        )
        for part in (numbers, scales):
            assert (part == 0).all(-1).flatten(1).nonzero()[:, 1].tolist() == [5, 9] * 3
        assert (cache == 0).sum() == 3 * 2 * 8 * 132


def test_untouched_blocks_cost_no_memory() -> None:
    before = psutil.Process().memory_info().rss
    pool = KvPool(CONFIG, 512, 16, "bfloat16", CPU)  # 1 GiB
    assert pool.k.numel() * 2 * 2 == 1 << 30
    assert psutil.Process().memory_info().rss - before < 64 << 20


def test_a_populated_pool_has_all_its_memory_and_is_zeros() -> None:
    before = psutil.Process().memory_info().rss
    pool = KvPool(CONFIG, 64, 16, "bfloat16", CPU)  # 128 MiB
    pool.populate()
    assert psutil.Process().memory_info().rss - before >= 120 << 20
    assert not pool.k[0, 63].any() and not pool.v[-1, 63].any()
