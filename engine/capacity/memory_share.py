"""Make KV cache and requests smaller where the memory limit is too small for their usual sizes. Arithmetic only.

In this order, each step only as far as needed:
1. memory for requests, from its usual size to an ample one (on large machines the usual one is generous);
2. the KV cache, to its least size;
3. memory for requests, from the ample size to the least one.

What is left of the memory for requests is one number, the memory share: 1 for the usual sizes, 1/2 for the ample ones,
0 for the least ones. All kinds of requests' memory have the same share.
"""

from dataclasses import dataclass, replace

from engine.capacity.sizing import EngineLimits, context_limit, kv_block_bytes, peak_blocks, size_engine
from engine.config import EngineConfig
from model.config import ModelConfig

MIN_KV_BYTES = 32 << 20  # least size of a KV cache, if one request of the longest context needs less
AMPLE = 0.5  # the share of ample sizes


@dataclass(frozen=True, slots=True)
class ServerDemand:
    """Bytes beside weights and KV cache: of processes, and of requests in three sizes."""

    usual_bytes: int
    ample_bytes: int
    least_bytes: int


@dataclass(frozen=True, slots=True)
class KvDemand:
    """Bytes of a KV cache with its null block."""

    usual_bytes: int
    least_bytes: int


NO_KV = KvDemand(0, 0)


@dataclass(frozen=True, slots=True)
class Fit:
    """Sizes that fit a memory limit."""

    memory_share: float  # of requests
    kv_bytes: int


def fit(limit_bytes: int | None, weight_bytes: int, server: ServerDemand, kv: KvDemand = NO_KV) -> Fit:
    """Return the largest sizes that fit, or the least ones if not even these do. `limit_bytes` None: no limit is known.

    Example: with a limit of 100 and weights of 30, 70 are left. Requests of usually 60, amply 40 and at least 20 and a
    cache of usually 45 and at least 10 get 40 (share 1/2) and 30; with a limit of 70 they get 30 (share 1/4) and 10.
    """
    if limit_bytes is None or weight_bytes + server.usual_bytes + kv.usual_bytes <= limit_bytes:
        return Fit(1.0, kv.usual_bytes)
    room = limit_bytes - weight_bytes
    if server.ample_bytes + kv.usual_bytes <= room:
        above_ample = room - kv.usual_bytes - server.ample_bytes
        return Fit(AMPLE + (1 - AMPLE) * above_ample / (server.usual_bytes - server.ample_bytes), kv.usual_bytes)
    if server.ample_bytes + kv.least_bytes <= room:
        return Fit(AMPLE, room - server.ample_bytes)
    above_least = max(0, room - kv.least_bytes - server.least_bytes)
    return Fit(AMPLE * above_least / max(1, server.ample_bytes - server.least_bytes), kv.least_bytes)


def scaled(usual: int, ample: int, least: int, memory_share: float) -> int:
    """Return the size for a share, rounded down: `usual` for 1, `ample` for 1/2, `least` for 0. Never above `usual`."""
    ample = min(ample, usual)
    least = min(least, ample)
    if memory_share >= 1.0:
        return usual
    if memory_share >= AMPLE:
        return ample + int((memory_share - AMPLE) / (1 - AMPLE) * (usual - ample))
    return least + int(memory_share / AMPLE * (ample - least))


def kv_demand(config: EngineConfig, model: ModelConfig, limits: EngineLimits) -> KvDemand:
    """Return the demand of this host's part of a KV cache. Sizes that the user set never shrink, nor does a cache on
    several hosts, each of which has a limit of its own."""
    block_bytes = _block_bytes_here(config, model)
    return KvDemand((limits.num_blocks + 1) * block_bytes, (_least_blocks(config, model, limits) + 1) * block_bytes)


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
    server = ServerDemand(config.server_bytes, config.ample_server_bytes, config.min_server_bytes)
    if weight_bytes is None:
        return replace(limits, memory_share=fit(limit_bytes, 0, server).memory_share)
    found = fit(limit_bytes, weight_bytes, server, kv_demand(config, model, limits))
    num_blocks = found.kv_bytes // _block_bytes_here(config, model) - 1
    if num_blocks == limits.num_blocks:
        return replace(limits, memory_share=found.memory_share)
    max_model_len, warnings = context_limit(config, model, num_blocks, limits.max_num_batched_tokens)
    return EngineLimits(num_blocks, max_model_len, limits.max_num_batched_tokens, warnings, found.memory_share)


def _block_bytes_here(config: EngineConfig, model: ModelConfig) -> int:
    """Return the bytes of a block on this host: each of several has the KV heads of its ranks."""
    return kv_block_bytes(config, model) // config.nnodes


def _least_blocks(config: EngineConfig, model: ModelConfig, limits: EngineLimits) -> int:
    """Return the smallest number of blocks: for one request of the longest context, and MIN_KV_BYTES."""
    is_set = config.num_kv_blocks is not None or config.kv_cache_memory_bytes is not None
    if is_set or config.nnodes > 1:
        return limits.num_blocks
    longest = peak_blocks(config, model, limits.max_num_batched_tokens, limits.max_model_len)
    return min(limits.num_blocks, max(longest, MIN_KV_BYTES // kv_block_bytes(config, model)))
