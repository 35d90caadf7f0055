"""The measured token budget follows the CPU's speed, and measuring it takes nothing from requests."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.capacity.sizing import MAX_CPU_BUDGET, MIN_CPU_BUDGET, EngineLimits
from engine.config import EngineConfig
from engine.scheduling.step_plan import Sampled, StepPlan, StepResult
from engine.startup import token_budget
from engine.startup.token_budget import measure_token_budget
from model.config import ModelConfig
from smoe import LocalEngine, SamplingParams
from tests.support.kernels.attention_cases import Heads
from tests.support.paths import DEMO

MODEL: ModelConfig = Heads().config


def test_measuring_the_budget_takes_no_row_from_requests() -> None:
    torch.set_num_threads(1)
    engine = LocalEngine(DEMO, max_num_seqs=1, threads=1)
    for _ in range(3):
        [completion] = engine.generate([1, 5, 6], SamplingParams(max_tokens=2, ignore_eos=True))
        assert len(completion.token_ids) == 2


@pytest.mark.parametrize("waited_s", [0.0, 3.0])
@pytest.mark.parametrize(
    ("seconds", "budget"),
    [(0.016, 2000 // 32 * 32), (0.064, 500 // 32 * 32), (1e-9, MAX_CPU_BUDGET), (9.0, MIN_CPU_BUDGET)],
)
def test_the_budget_fills_half_a_second_at_the_speed_of_the_second_step(
    monkeypatch: pytest.MonkeyPatch, seconds: float, budget: int, waited_s: float
) -> None:
    """Time in which a step waits for experts from the disk does not count."""
    clock, store = [0.0], SimpleNamespace(waited_s=7.0)
    durations = iter((100.0, seconds))  # the first step warms up

    class Runner:
        model = None

        def run(self, plan: StepPlan) -> StepResult:
            assert plan.num_tokens == token_budget.CALIBRATION_TOKENS == 64
            clock[0] += next(durations) + waited_s
            store.waited_s += waited_s
            return StepResult({chunk.sequence.request_id: Sampled(5) for chunk in plan.chunks})

    runner: Any = Runner()
    monkeypatch.setattr(token_budget.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(token_budget, "expert_store_of", lambda model: store if waited_s else None)
    limits = EngineLimits(num_blocks=40, max_model_len=200, max_num_batched_tokens=2048)
    monkeypatch.setattr(token_budget, "LARGER_STEP_TOKENS", token_budget.CALIBRATION_TOKENS)
    assert measure_token_budget(EngineConfig(model=""), MODEL, runner, limits) == budget


@pytest.mark.parametrize(
    ("small_s", "large_s", "budget", "num_steps"),
    [(0.04, 0.16, 1600, 3), (0.04, 0.01, MAX_CPU_BUDGET, 3), (0.06, 0.25, 1024, 3), (0.064, None, 480, 2)],
)
def test_a_larger_step_that_fits_decides(
    monkeypatch: pytest.MonkeyPatch, small_s: float, large_s: float | None, budget: int, num_steps: int
) -> None:
    """Of a small step much is the reading of weights, so alone it tells too small a budget."""
    clock, sizes = [0.0], list[int]()
    durations = iter((100.0, small_s, large_s))

    class Runner:
        model = None

        def run(self, plan: StepPlan) -> StepResult:
            sizes.append(plan.num_tokens)
            clock[0] += next(durations) or 0.0
            return StepResult({chunk.sequence.request_id: Sampled(5) for chunk in plan.chunks})

    runner: Any = Runner()
    monkeypatch.setattr(token_budget.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(token_budget, "expert_store_of", lambda model: None)
    limits = EngineLimits(num_blocks=100, max_model_len=1000, max_num_batched_tokens=2048)
    assert measure_token_budget(EngineConfig(model=""), MODEL, runner, limits) == budget
    assert sizes == [64, 64, 512][:num_steps]


def test_a_cache_that_holds_less_than_the_measured_step_leaves_all_rows_to_requests() -> None:
    """With a window, prompts may be longer than the KV cache: the measured one is not, and ends in its step."""
    engine = LocalEngine(DEMO, max_num_seqs=1, threads=1, sliding_window=16, num_kv_blocks=3)
    for _ in range(3):
        [completion] = engine.generate([1, 5, 6], SamplingParams(max_tokens=2, ignore_eos=True))
        assert len(completion.token_ids) == 2
