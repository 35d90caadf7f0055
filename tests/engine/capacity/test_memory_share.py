"""engine/capacity/memory_share.py: where memory is short, requests and KV cache get smaller in a fixed order."""

import random
from dataclasses import replace

import pytest

from engine.capacity import memory_share
from engine.capacity.memory_share import KvDemand, ServerDemand, fit, kv_demand, scaled, size_within_limit
from engine.capacity.sizing import EngineLimits, kv_block_bytes, peak_blocks, size_engine
from engine.config import EngineConfig
from tests.simulator.setup import Setup, model_config

MIB = 1 << 20
BUDGET = 64
MODEL = replace(model_config(Setup()), num_layers=32, num_kv_heads=8, head_dim=128)
WEIGHTS = 500 * MIB
FREE = 4000 * MIB  # after the weights
SERVER = ServerDemand(900 * MIB, 600 * MIB, 400 * MIB)
BLOCK = kv_block_bytes(EngineConfig(model="m"), MODEL)


def limits(limit_bytes: int | None, weight_bytes: int | None = WEIGHTS, **settings: object) -> EngineLimits:
    sizes = {
        "server_bytes": SERVER.usual_bytes,
        "ample_server_bytes": SERVER.ample_bytes,
        "min_server_bytes": SERVER.least_bytes,
    }
    config = EngineConfig(model="m", **(sizes | settings))  # type: ignore[arg-type]
    return size_within_limit(config, MODEL, FREE, BUDGET, 0.5, weight_bytes, limit_bytes)


def pool_bytes(found: EngineLimits) -> int:
    return (found.num_blocks + 1) * BLOCK


def server_bytes(share: float) -> int:
    return scaled(SERVER.usual_bytes, SERVER.ample_bytes, SERVER.least_bytes, share)


USUAL = size_engine(EngineConfig(model="m"), MODEL, FREE, BUDGET)
NEEDED = WEIGHTS + SERVER.usual_bytes + pool_bytes(USUAL)


@pytest.mark.parametrize(
    ("limit", "requests", "cache"),
    [
        (135, 60, 45),
        (134, 59, 45),  # first requests, down to 40
        (115, 40, 45),
        (114, 40, 44),  # then the cache, down to 10
        (100, 40, 30),
        (80, 40, 10),
        (79, 39, 10),  # then requests again, down to 20
        (70, 30, 10),
        (60, 20, 10),
        (59, 20, 10),
        (1, 20, 10),
    ],
)
def test_requests_and_cache_get_smaller_in_order(limit: int, requests: int, cache: int) -> None:
    found = fit(limit, 30, ServerDemand(60, 40, 20), KvDemand(45, 10))
    assert (round(scaled(60_000, 40_000, 20_000, found.memory_share) / 1000), found.kv_bytes) == (requests, cache)


def test_what_fits_never_exceeds_the_limit_and_leaves_nothing_unused() -> None:
    rng = random.Random(1)
    for _ in range(300):
        parts = [sorted(rng.sample(range(1, 10**6), 3)) for _ in range(rng.randint(1, 5))]
        server = ServerDemand(*(sum(part[size] for part in parts) for size in (2, 1, 0)))
        kv = KvDemand(*sorted(rng.sample(range(1, 10**6), 2), reverse=True))
        weights = rng.randrange(10**6)
        least, usual = (weights + server.least_bytes + kv.least_bytes), (weights + server.usual_bytes + kv.usual_bytes)
        limit = rng.randint(least, usual + 100)
        found = fit(limit, weights, server, kv)
        requests = sum(scaled(part[2], part[1], part[0], found.memory_share) for part in parts)
        total = weights + requests + found.kv_bytes
        assert min(limit, usual) - len(parts) <= total <= min(limit, usual)


def test_a_size_never_exceeds_the_usual_one_or_falls_below_the_least() -> None:
    assert [scaled(100, 60, 20, share) for share in (2.0, 1.0, 0.75, 0.5, 0.25, 0.0)] == [100, 100, 80, 60, 40, 20]
    assert [scaled(10, 60, 20, share) for share in (1.0, 0.5, 0.0)] == [10, 10, 10]
    assert [scaled(30, 60, 20, share) for share in (1.0, 0.5, 0.0)] == [30, 30, 20]


def test_sizes_that_are_all_fixed_fit_or_have_no_share() -> None:
    fixed = ServerDemand(10, 10, 10)
    assert fit(10, 0, fixed).memory_share == fit(None, 99, fixed).memory_share == 1.0
    assert fit(9, 0, fixed).memory_share == 0.0


def test_with_enough_memory_the_limits_are_those_of_the_sizes_alone() -> None:
    assert limits(NEEDED) == limits(None) == limits(1, server_bytes=0) == USUAL
    assert USUAL.memory_share == 1.0


@pytest.mark.parametrize(
    ("missing", "changes_cache"),
    [(1, False), (300 * MIB, False), (301 * MIB, True), (900 * MIB, True), (1400 * MIB, True)],
)
def test_a_small_limit_makes_cache_and_requests_smaller_until_the_sum_fits(missing: int, changes_cache: bool) -> None:
    found = limits(NEEDED - missing)
    total = WEIGHTS + server_bytes(found.memory_share) + pool_bytes(found)
    assert NEEDED - missing - 2 * BLOCK < total <= NEEDED - missing
    assert (found.num_blocks < USUAL.num_blocks) == changes_cache
    assert found.max_model_len == USUAL.max_model_len


def test_without_room_for_anything_the_cache_still_holds_the_longest_request(monkeypatch: pytest.MonkeyPatch) -> None:
    found = limits(1)
    assert found.memory_share == 0.0
    longest = peak_blocks(EngineConfig(model="m"), MODEL, BUDGET, USUAL.max_model_len)
    assert found.num_blocks == longest < USUAL.num_blocks
    assert found.max_model_len == USUAL.max_model_len
    monkeypatch.setattr(memory_share, "MIN_KV_BYTES", (longest + 5) * BLOCK)
    assert limits(1).num_blocks == longest + 5


@pytest.mark.parametrize("flags", [{"num_kv_blocks": 450}, {"kv_cache_memory_bytes": 1500 * MIB}])
def test_a_cache_of_a_set_size_stays_and_only_the_requests_get_smaller(flags: dict[str, int]) -> None:
    chosen = size_engine(EngineConfig(model="m", **flags), MODEL, FREE, BUDGET).num_blocks  # type: ignore[arg-type]
    limit = WEIGHTS + (chosen + 1) * BLOCK + 500 * MIB
    assert (limits(limit, **flags).num_blocks, limits(1, **flags).num_blocks) == (chosen, chosen)
    assert limits(limit, **flags).memory_share == pytest.approx(0.25)
    assert limits(limit).num_blocks != chosen and limits(limit).memory_share == 0.5


@pytest.mark.parametrize("missing", [100 * MIB, 900 * MIB, 1400 * MIB])
def test_a_restarted_engine_with_the_first_ones_blocks_has_its_share(missing: int) -> None:
    first = limits(NEEDED - missing)
    again = limits(NEEDED - missing, num_kv_blocks=first.num_blocks, max_model_len=first.max_model_len)
    assert again.num_blocks == first.num_blocks
    assert again.memory_share == pytest.approx(first.memory_share, abs=0.02)


def test_beside_a_gpu_only_the_requests_get_smaller() -> None:
    found = limits(750 * MIB, weight_bytes=None)
    assert (found.num_blocks, found.memory_share) == (USUAL.num_blocks, pytest.approx(0.75))


def test_a_cache_on_several_hosts_is_not_measured_by_the_limit_of_one() -> None:
    config = EngineConfig(model="m", nnodes=2, tensor_parallel_size=2)
    demand = kv_demand(config, MODEL, size_engine(config, MODEL, FREE, BUDGET))
    assert demand.least_bytes == demand.usual_bytes


@pytest.mark.parametrize("nnodes", [2, 4, 8])
def test_each_of_several_hosts_has_its_part_of_the_cache(nnodes: int) -> None:
    """With the free memory and the weights of one host on each, requests have the share that they have on one."""
    sizes = {"server_bytes": 900 * MIB, "ample_server_bytes": 600 * MIB, "min_server_bytes": 400 * MIB}
    for missing, share in ((0, 1.0), (150 * MIB, 0.75)):
        config = EngineConfig(model="m", nnodes=nnodes, tensor_parallel_size=nnodes, **sizes)  # type: ignore[arg-type]
        usual = size_engine(config, MODEL, nnodes * FREE, BUDGET)
        limit = WEIGHTS + 900 * MIB + (usual.num_blocks + 1) * kv_block_bytes(config, MODEL) // nnodes
        found = size_within_limit(config, MODEL, nnodes * FREE, BUDGET, 0.5, WEIGHTS, limit - missing)
        assert (found.num_blocks, found.memory_share) == (usual.num_blocks, pytest.approx(share))
