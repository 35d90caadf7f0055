"""The token budget of a CPU's steps, measured with the engine's own scheduler."""

import time
from dataclasses import replace

import msgspec

from engine.capacity.new_scheduler import CALIBRATION_TOKENS, cpu_token_budget, make_scheduler
from engine.capacity.sizing import EngineLimits
from engine.config import EngineConfig
from engine.execution.experts.stats import ExpertReporter
from engine.execution.model_runner import ModelRunner
from engine.execution.persistent_batch import PersistentBatch
from engine.execution.sampler import Sampler
from engine.types import Request, SamplingParams
from model.config import ModelConfig
from model.kv_format import KvDtype
from model.kv_pool import KvPool
from model.mixtral import Mixtral
from model.mixtral_native import expert_store_of, in_one_call
from model.ops.interface import Ops

LARGER_STEP_TOKENS = 512


def measure_token_budget(config: EngineConfig, model: ModelConfig, runner: ModelRunner, limits: EngineLimits) -> int:
    """Return how many tokens this CPU computes in about half a second, from a small step timed after a warm-up.

    Reading the weights is a large part of a small step on a CPU that multiplies fast. So if by this estimate a larger
    step fits too, it is timed and decides.
    """
    count = _num_tokens(config, limits)
    budget = cpu_token_budget(count, _step_seconds(config, model, runner, limits, count))
    larger = _num_tokens(config, limits, LARGER_STEP_TOKENS)
    if larger <= count or budget < larger:
        return budget
    return cpu_token_budget(larger, _step_seconds(config, model, runner, limits, larger, num_steps=1))


def sampled_token_budget(
    config: EngineConfig, model: Mixtral, ops: Ops, kv_dtype: KvDtype, limits: EngineLimits
) -> int:
    """Estimate the same from the network's first layers, so that only their weights are read from a mapped file.

    All layers take the time by which a second layer lengthens a step of one, or a quarter of the longer step if that is
    more: other work may have slowed the shorter one. Where a store reads the experts, a step of one token is the
    warm-up: it reads what all tokens need. The store maps pages of experts before they are used, and that time does not
    count.
    """
    config = msgspec.structs.replace(config, max_num_seqs=1)
    num_tokens = max(1, min(CALIBRATION_TOKENS, limits.max_prompt_tokens))
    num_blocks = -(-num_tokens // config.block_size) + 1
    limits = replace(limits, num_blocks=num_blocks)
    runners = [_small_runner(_first_layers(model, ops, count), config, kv_dtype, limits) for count in (1, 2)]
    num_steps = 2
    if expert_store_of(model) is not None:
        num_steps = 1
        _step_seconds(config, runners[1].model.config, runners[1], limits, num_tokens=1, num_steps=1)
    one, two = (_step_seconds(config, runner.model.config, runner, limits, num_tokens, num_steps) for runner in runners)
    return cpu_token_budget(num_tokens, one + (model.config.num_layers - 1) * max(two - one, two / 4))


def _num_tokens(config: EngineConfig, limits: EngineLimits, wanted: int = CALIBRATION_TOKENS) -> int:
    """Return how many tokens of a prompt one step computes, at most `wanted`: where attention has a window, prompts may
    be longer than the KV cache."""
    return max(1, min(wanted, limits.max_prompt_tokens, limits.num_blocks * config.block_size))


def _step_seconds(
    config: EngineConfig,
    model: ModelConfig,
    runner: ModelRunner,
    limits: EngineLimits,
    num_tokens: int,
    num_steps: int = 2,
) -> float:
    """Time the last of `num_steps` equal steps, without the time in which it waited for experts from the disk."""
    seconds, prompt = 0.0, [index % model.vocab_size for index in range(num_tokens)]
    for _ in range(num_steps):
        scheduler = make_scheduler(config, model, replace(limits, max_num_batched_tokens=num_tokens))
        scheduler.add(Request(0, prompt, SamplingParams(max_tokens=1)))
        plan = scheduler.plan(0.0)
        start = time.monotonic() - _waited_s(runner)
        result = runner.run(plan)
        seconds = time.monotonic() - _waited_s(runner) - start
        scheduler.apply(plan, result, 0.0)  # ends the request and frees its row
    return seconds


def _waited_s(runner: ModelRunner) -> float:
    store = expert_store_of(runner.model)
    return 0.0 if store is None else store.waited_s


def _first_layers(model: Mixtral, ops: Ops, count: int) -> Mixtral:
    """Return the network of the first layers, with embedding and head; it has the same tensors."""
    weights = replace(model.weights, layers=model.weights.layers[:count])
    network = Mixtral(replace(model.config, num_layers=len(weights.layers)), weights, ops)
    return in_one_call(network, ops)


def _small_runner(network: Mixtral, config: EngineConfig, kv_dtype: KvDtype, limits: EngineLimits) -> ModelRunner:
    """Return a runner of one request, with a KV pool of its own."""
    device = network.weights.embedding.device
    pool = KvPool(network.config, limits.num_blocks + 1, config.block_size, kv_dtype, device)
    requests = PersistentBatch(1, limits.max_model_len, config.block_size, network.config.vocab_size, device)
    sampler = Sampler(network.ops, requests, network.config.eos_token_ids)
    return ModelRunner(network, pool, requests, sampler, ExpertReporter(None))
