"""The engine's scheduler, and the token budget measured with it on a CPU."""

import time
from dataclasses import replace

from engine.capacity.sizing import MAX_CPU_BUDGET, MIN_CPU_BUDGET, EngineLimits
from engine.config import EngineConfig
from engine.execution.model_runner import ModelRunner
from engine.scheduling.block_geometry import BlockGeometry
from engine.scheduling.block_manager import BlockManager
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.scheduler import Scheduler
from engine.speculation.speculator import Drafter
from engine.types import Request, SamplingParams
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


def measure_token_budget(config: EngineConfig, model: ModelConfig, runner: ModelRunner, limits: EngineLimits) -> int:
    """Return how many tokens this CPU computes in about CPU_STEP_S, from a small step timed after a warm-up."""
    count = max(1, min(CALIBRATION_TOKENS, limits.max_prompt_tokens))
    seconds = 0.0
    for _ in range(2):
        scheduler = make_scheduler(config, model, replace(limits, max_num_batched_tokens=count))
        scheduler.add(Request(0, [index % model.vocab_size for index in range(count)], SamplingParams(max_tokens=1)))
        plan = scheduler.plan(0.0)
        start = time.monotonic()
        result = runner.run(plan)
        seconds = time.monotonic() - start
        scheduler.apply(plan, result, 0.0)  # ends the request and frees its row
    tokens = int(count * CPU_STEP_S / max(seconds, 1e-6))
    return max(MIN_CPU_BUDGET, min(MAX_CPU_BUDGET, tokens // 32 * 32))
