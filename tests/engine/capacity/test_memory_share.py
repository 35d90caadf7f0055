"""engine/capacity/memory_share.py: where memory is short, KV cache and requests give up the same share."""

import random
from dataclasses import replace

import pytest

from engine.capacity import memory_share
from engine.capacity.memory_share import Demand, kv_demand, scaled, share_that_fits, size_within_limit
from engine.capacity.sizing import EngineLimits, kv_block_bytes, peak_blocks, size_engine
from engine.config import EngineConfig
from tests.simulator.setup import Setup, model_config

MIB = 1 << 20
BUDGET = 64
MODEL = replace(model_config(Setup()), num_layers=32, num_kv_heads=8, head_dim=128)
WEIGHTS = 500 * MIB
FREE = 4000 * MIB  # after the weights
SERVER = {"server_bytes": 900 * MIB, "min_server_bytes": 400 * MIB}


def limits(limit_bytes: int | None, weight_bytes: int | None = WEIGHTS, **settings: object) -> EngineLimits:
    config = EngineConfig(model="m", **(SERVER | settings))  # type: ignore[arg-type]
    return size_within_limit(config, MODEL, FREE, BUDGET, 0.5, weight_bytes, limit_bytes)


def pool_bytes(found: EngineLimits) -> int:
    return (found.num_blocks + 1) * kv_block_bytes(EngineConfig(model="m"), MODEL)


def test_the_share_is_the_largest_with_which_the_demands_fit() -> None:
    rng = random.Random(1)
    for _ in range(200):
        demands = [Demand(least + rng.randrange(10**6), least) for least in rng.sample(range(10**6), rng.randint(1, 5))]
        least, usual = sum(d.least_bytes for d in demands), sum(d.usual_bytes for d in demands)
        limit = rng.randint(least, usual + 100)
        share = share_that_fits(limit, demands)
        total = sum(scaled(d.usual_bytes, d.least_bytes, share) for d in demands)
        assert min(limit, usual) - len(demands) <= total <= min(limit, usual)
        if share < 1.0:
            for demand in demands:
                given_up = demand.usual_bytes - scaled(demand.usual_bytes, demand.least_bytes, share)
                assert given_up == pytest.approx((1 - share) * (demand.usual_bytes - demand.least_bytes), abs=1)


def test_the_example_of_the_module() -> None:
    demands = [Demand(120 * MIB, 20 * MIB), Demand(60 * MIB, 40 * MIB)]
    share = share_that_fits(100 * MIB, demands)
    assert share == pytest.approx(1 / 3)
    assert [scaled(d.usual_bytes, d.least_bytes, share) for d in demands] == [55_924_053, 48_933_546]


@pytest.mark.parametrize(("limit", "share"), [(None, 1.0), (10, 1.0), (9, 0.8), (5, 0.0), (1, 0.0)])
def test_the_share_lies_between_0_and_1(limit: int | None, share: float) -> None:
    assert share_that_fits(limit, [Demand(10, 5)]) == pytest.approx(share)


def test_demands_that_cannot_shrink_leave_a_share_of_0_or_1() -> None:
    assert share_that_fits(9, [Demand(10, 10)]) == 0.0
    assert share_that_fits(10, [Demand(10, 10)]) == 1.0
    assert share_that_fits(0, []) == 1.0


def test_with_enough_memory_the_limits_are_those_of_the_sizes_alone() -> None:
    usual = size_engine(EngineConfig(model="m"), MODEL, FREE, BUDGET)
    needed = WEIGHTS + SERVER["server_bytes"] + pool_bytes(usual)
    assert limits(needed) == limits(None) == limits(1, server_bytes=0) == usual
    assert usual.memory_share == 1.0


@pytest.mark.parametrize("missing", [1, 10 * MIB, 500 * MIB, 1400 * MIB])
def test_a_small_limit_makes_the_cache_and_the_requests_smaller_until_the_sum_fits(missing: int) -> None:
    usual = size_engine(EngineConfig(model="m"), MODEL, FREE, BUDGET)
    limit = WEIGHTS + SERVER["server_bytes"] + pool_bytes(usual) - missing
    found = limits(limit)
    requests = scaled(SERVER["server_bytes"], SERVER["min_server_bytes"], found.memory_share)
    block_bytes = kv_block_bytes(EngineConfig(model="m"), MODEL)
    assert limit - 2 * block_bytes < WEIGHTS + requests + pool_bytes(found) <= limit
    assert found.num_blocks < usual.num_blocks and found.memory_share < 1.0


def test_without_room_for_anything_the_cache_still_holds_the_longest_request(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(model="m")
    usual, found = size_engine(config, MODEL, FREE, BUDGET), limits(1)
    assert found.memory_share == 0.0
    assert found.num_blocks == peak_blocks(config, MODEL, BUDGET, usual.max_model_len) < usual.num_blocks
    assert found.max_model_len == usual.max_model_len
    monkeypatch.setattr(memory_share, "MIN_KV_BYTES", 2 * pool_bytes(found))
    assert pool_bytes(limits(1)) > pool_bytes(found)


@pytest.mark.parametrize("flags", [{"num_kv_blocks": 700}, {"kv_cache_memory_bytes": 1500 * MIB}])
def test_a_cache_of_a_set_size_stays_and_only_the_requests_give_up_memory(flags: dict[str, int]) -> None:
    limit = WEIGHTS + 2200 * MIB
    derived, chosen = limits(limit), limits(limit, **flags)
    assert chosen.num_blocks == size_engine(EngineConfig(model="m", **flags), MODEL, FREE, BUDGET).num_blocks
    assert chosen.num_blocks > 0 and chosen.memory_share != derived.memory_share
    assert limits(1, **flags).num_blocks == chosen.num_blocks


def test_a_restarted_engine_with_the_first_ones_blocks_has_its_share() -> None:
    first = limits(WEIGHTS + 2000 * MIB)
    again = limits(WEIGHTS + 2000 * MIB, num_kv_blocks=first.num_blocks, max_model_len=first.max_model_len)
    assert again.num_blocks == first.num_blocks
    assert again.memory_share == pytest.approx(first.memory_share, abs=0.02)


def test_beside_a_gpu_only_the_requests_give_up_memory() -> None:
    found = limits(650 * MIB, weight_bytes=None)
    assert found.num_blocks == limits(None).num_blocks
    assert found.memory_share == pytest.approx(0.5)


def test_a_cache_on_several_hosts_is_not_measured_by_the_limit_of_one() -> None:
    config = EngineConfig(model="m", nnodes=2, tensor_parallel_size=2)
    usual = size_engine(config, MODEL, FREE, BUDGET)
    demand = kv_demand(config, MODEL, usual)
    assert demand.least_bytes == demand.usual_bytes
