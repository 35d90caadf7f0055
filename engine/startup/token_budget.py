"""The token budget of a CPU's steps, measured with the engine's own scheduler."""

import time
from dataclasses import replace

from engine.capacity.new_scheduler import CALIBRATION_TOKENS, cpu_token_budget, make_scheduler
from engine.capacity.sizing import EngineLimits
from engine.config import EngineConfig
from engine.execution.model_runner import ModelRunner
from engine.types import Request, SamplingParams
from model.config import ModelConfig


def measure_token_budget(config: EngineConfig, model: ModelConfig, runner: ModelRunner, limits: EngineLimits) -> int:
    """Return how many tokens this CPU computes in about half a second, from a small step timed after a warm-up."""
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
    return cpu_token_budget(count, seconds)
