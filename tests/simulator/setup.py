"""Settings of a simulated engine, and the engine built from them."""

import itertools
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from engine.capacity.sizing import EngineLimits
from engine.config import EngineConfig
from engine.engine import Engine
from engine.grammars.mask_budget import MaskBudget
from engine.scheduling.prompt_share import PromptShares
from engine.startup.assembly import LoadedModel
from model.checkpoint.identity import CheckpointIdentity
from model.config import ModelConfig
from tests.simulator.exact import DIM, ExactRunner
from tests.simulator.faults import Clock, Faults, FaultyPool
from tests.simulator.rows import rows_runner

VOCAB, NUM_LAYERS, NUM_EXPERTS, K = 97, 2, 4, 2
# Time of a step's masks, on a clock that each reading advances by 1: one mask; or a few, and those of drafts.
MASKS_S, MASKS_WITH_DRAFTS_S = 3.0, 60.0


@dataclass(frozen=True)
class Setup:
    """Settings of one engine."""

    num_blocks: int = 16
    block_size: int = 4
    window: int | None = None
    budget: int = 16
    max_num_seqs: int = 8
    max_model_len: int = 60
    prefix_caching: bool = True
    by_priority: bool = True
    num_tenants: int = 1
    position_s: float = 0.0  # time that a position takes
    prompt_s: float = 0.06  # of a step for prompts, with several tenants
    min_positions: int = 16  # of a tenant's first prompt in a step
    ahead: bool = False  # asynchronous scheduling: plan a step while the one before is in flight
    eos: tuple[int, ...] = ()
    drafts: bool = False  # requests that decode draft tokens, some of which are right
    with_rows: bool = False  # with the product's runner, persistent batch and sampler
    first_id: int = 0


def exact_runner(s: Setup) -> Any:
    """Return the exact model behind the interface of ModelRunner."""
    if s.with_rows:
        return rows_runner(model_config(s), s.num_blocks, s.block_size, s.max_num_seqs, s.max_model_len)
    return ExactRunner(s.num_blocks, s.block_size, s.window, VOCAB, NUM_LAYERS)


def build_engine(s: Setup, runner: Any, clock: Clock, faults: Faults, grammars: Any) -> Engine:
    """Return an engine with a faulty block pool."""
    config = EngineConfig(
        model="",
        max_num_seqs=s.max_num_seqs,
        block_size=s.block_size,
        enable_prefix_caching=s.prefix_caching,
        scheduling_policy="priority" if s.by_priority else "fcfs",
        async_scheduling=s.ahead,
        num_tenants=s.num_tenants,
        check_integrity=True,
    )
    absent: Any = None
    loaded = LoadedModel(
        config=model_config(s),
        runner=runner,
        kv_pool=absent,
        limits=EngineLimits(s.num_blocks, s.max_model_len, s.budget),
        dtype=torch.float32,
        kv_dtype="float32",
        device=torch.device("cpu"),
        backend="exact",
        numerics="exact",
        quantization="none",
        weight_bytes=0,
        kv_block_bytes=0,
        phase_seconds={},
        warnings=(),
        checkpoint=CheckpointIdentity("simulated", "simulated"),
    )
    with patch("engine.engine.memory_limit_bytes", lambda: None):  # no machine's: its files take 1 ms to read
        engine = Engine(config, loaded, clock=clock)
    engine.scheduler.block_manager.pool = FaultyPool(s.num_blocks, faults)
    engine.scheduler.prompt_shares = PromptShares(s.num_tenants, s.prompt_s, s.min_positions)
    engine._grammars = grammars
    budget_s = MASKS_WITH_DRAFTS_S if s.drafts else MASKS_S
    engine._masks = MaskBudget(budget_s, clock=map(float, itertools.count()).__next__)
    servable = engine.scheduler.block_manager.geometry.max_servable_tokens(s.num_blocks)
    engine.scheduler.max_model_len = min(s.max_model_len, servable or s.max_model_len)
    return engine


def model_config(setup: Setup) -> ModelConfig:
    return ModelConfig(
        architecture="MixtralForCausalLM",
        vocab_size=VOCAB,
        dim=DIM,
        num_layers=NUM_LAYERS,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        hidden_dim=8,
        num_experts=NUM_EXPERTS,
        experts_per_token=K,
        window=setup.window,
        context_len=4096,
        rope_theta=1e4,
        norm_eps=1e-5,
        tied_head=False,
        dtype="float32",
        bos_token_id=None,
        eos_token_ids=setup.eos,
    )
