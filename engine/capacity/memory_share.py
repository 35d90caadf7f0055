"""Share of their usual memory that KV cache and requests get where the memory limit is too small for all of it.

Each kind of memory has a usual size and a least one. All kinds give up the same share of the difference, so that none
is used up before another gives anything. Arithmetic only.

Example: 100 MiB are left for a KV cache of usually 120 MiB, at least 20, and requests of usually 60 MiB, at least 40.
Both may give up 120 MiB and have to give up 80: the share is a third, 53 MiB for the cache and 47 for requests.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from engine.capacity.sizing import EngineLimits, context_limit, kv_block_bytes, peak_blocks, size_engine
from engine.config import EngineConfig
from model.config import ModelConfig

MIN_KV_BYTES = 32 << 20  # least size of a KV cache, if one request of the longest context needs less


@dataclass(frozen=True, slots=True)
class Demand:
    """Bytes of one kind of memory, or of several kinds together."""

    usual_bytes: int
    least_bytes: int


def share_that_fits(limit_bytes: int | None, demands: Iterable[Demand]) -> float:
    """Return the share with which the demands fit the limit: 1 if they do with their usual sizes, and 0 if they do not
    even with the least ones. `limit_bytes` None: no limit is known."""
    listed = list(demands)
    usual_bytes = sum(demand.usual_bytes for demand in listed)
    least_bytes = sum(demand.least_bytes for demand in listed)
    if limit_bytes is None or usual_bytes <= limit_bytes:
        return 1.0
    if usual_bytes == least_bytes:
        return 0.0
    return max(0.0, (limit_bytes - least_bytes) / (usual_bytes - least_bytes))


def scaled(usual: int, least: int, share: float) -> int:
    """Return the size between `least` (share 0) and `usual` (share 1), rounded down. Never more than `usual`."""
    least = min(least, usual)
    return usual if share >= 1.0 else least + int(share * (usual - least))


def kv_demand(config: EngineConfig, model: ModelConfig, limits: EngineLimits) -> Demand:
    """Return the demand of a KV cache with its null block. Sizes that the user set never shrink, nor does a cache on
    several hosts, of which each has a limit of its own."""
    block_bytes = kv_block_bytes(config, model)
    num_blocks = _least_blocks(config, model, limits)
    return Demand((limits.num_blocks + 1) * block_bytes, (num_blocks + 1) * block_bytes)


def size_within_limit(
    config: EngineConfig,
    model: ModelConfig,
    free_bytes: int,
    default_budget: int,
    pool_share: float,
    weight_bytes: int | None,
    limit_bytes: int | None,
) -> EngineLimits:
    """Return the limits of size_engine(), with a smaller KV cache where the memory limit is too small.

    `weight_bytes`: of the weights in the memory that `limit_bytes` bounds; None if weights and KV cache are elsewhere,
    on a GPU. Raises EngineConfigError.
    """
    limits = size_engine(config, model, free_bytes, default_budget, pool_share)
    if not config.server_bytes:
        return limits
    server = Demand(config.server_bytes, config.min_server_bytes)
    if weight_bytes is None:
        return replace(limits, memory_share=share_that_fits(limit_bytes, [server]))
    demands = [Demand(weight_bytes, weight_bytes), server, kv_demand(config, model, limits)]
    share = share_that_fits(limit_bytes, demands)
    num_blocks = scaled(limits.num_blocks, _least_blocks(config, model, limits), share)
    if num_blocks == limits.num_blocks:
        return replace(limits, memory_share=share)
    max_model_len, warnings = context_limit(config, model, num_blocks, limits.max_num_batched_tokens)
    return EngineLimits(num_blocks, max_model_len, limits.max_num_batched_tokens, warnings, share)


def _least_blocks(config: EngineConfig, model: ModelConfig, limits: EngineLimits) -> int:
    """Return the smallest number of blocks: for one request of the longest context, and MIN_KV_BYTES."""
    is_set = config.num_kv_blocks is not None or config.kv_cache_memory_bytes is not None
    if is_set or config.nnodes > 1:
        return limits.num_blocks
    longest = peak_blocks(config, model, limits.max_num_batched_tokens, limits.max_model_len)
    return min(limits.num_blocks, max(longest, MIN_KV_BYTES // kv_block_bytes(config, model)))
