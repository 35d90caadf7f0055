"""The scheduler of an engine, from its limits; and the token budget of a CPU's step, from a measured one."""

from engine.capacity.sizing import MAX_CPU_BUDGET, MIN_CPU_BUDGET, EngineLimits
from engine.config import EngineConfig
from engine.scheduling.blocks.geometry import BlockGeometry
from engine.scheduling.blocks.manager import BlockManager
from engine.scheduling.blocks.pool import BlockPool
from engine.scheduling.scheduler import Scheduler
from engine.speculation.speculator import Drafter
from model.config import ModelConfig

CPU_STEP_S = 0.5  # duration of a full step on a CPU, unless the user sets a budget
CALIBRATION_TOKENS = 64


def make_scheduler(
    config: EngineConfig, model: ModelConfig, limits: EngineLimits, drafter: Drafter | None = None
) -> Scheduler:
    """Create a scheduler over an empty block pool. `drafter` None: no request drafts."""
    budget = limits.max_num_batched_tokens
    geometry = BlockGeometry(config.block_size, model.window, budget)
    return Scheduler(
        BlockManager(BlockPool(limits.num_blocks), geometry, prefix_caching=config.enable_prefix_caching),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=limits.max_model_len,
        eos_token_ids=model.eos_token_ids,
        by_priority=config.scheduling_policy == "priority",
        num_experts=model.num_experts,
        num_tenants=config.num_tenants,
        share_prefix_cache=config.share_prefix_cache,
        drafter=drafter,
    )


def cpu_token_budget(num_tokens: int, seconds: float) -> int:
    """Return how many tokens a CPU computes in about CPU_STEP_S, if it takes `seconds` for `num_tokens`."""
    tokens = int(num_tokens * CPU_STEP_S / max(seconds, 1e-6))
    return max(MIN_CPU_BUDGET, min(MAX_CPU_BUDGET, tokens // 32 * 32))
