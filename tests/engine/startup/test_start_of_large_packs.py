"""A start measures the CPU and the disk in as little time as it can."""

import threading
from pathlib import Path
from typing import Any

import pytest

from engine.capacity.new_scheduler import CALIBRATION_TOKENS, cpu_token_budget
from engine.capacity.sizing import MAX_CPU_BUDGET
from engine.errors import EngineConfigError
from engine.execution.model_runner import ModelRunner
from engine.scheduling.step_plan import StepPlan, StepResult
from engine.startup import assembly, loading, token_budget
from model.checkpoint.pack.experts import expert_tensors
from model.checkpoint.pack.header import read_header
from smoe import LocalEngine
from tests.support.checkpoints.packs import make_pack
from tests.support.paths import DEMO

SMALL: dict[str, Any] = {"threads": 1, "num_kv_blocks": 64}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pack(DEMO, tmp_path_factory.mktemp("packs") / "demo-int8", quantization="int8")


@pytest.fixture
def few_experts(packed: Path) -> dict[str, Any]:
    """Settings with which two experts are in memory."""
    return SMALL | {"expert_memory": 2 * expert_tensors(read_header(packed)).largest_bytes}


def budget_of(engine: LocalEngine) -> int:
    return engine._engine.loaded.limits.max_num_batched_tokens


def test_the_disk_is_measured_while_the_weights_are_loaded(
    packed: Path, few_experts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of one byte per second gives the largest steps."""
    is_loading, waited = threading.Event(), list[bool]()
    load_weights = loading._load_weights

    def load(*arguments: Any) -> Any:
        is_loading.set()
        return load_weights(*arguments)

    def measure(pack: Path, sample_bytes: int) -> float:
        assert pack == packed and sample_bytes == loading.DISK_SAMPLE_BYTES
        waited.append(is_loading.wait(60))
        return 1.0

    monkeypatch.setattr(loading, "_load_weights", load)
    monkeypatch.setattr(loading, "disk_rate", measure)
    assert budget_of(LocalEngine(packed, **few_experts)) == MAX_CPU_BUDGET
    assert waited == [True]


@pytest.mark.parametrize("settings", [{"max_num_batched_tokens": 32}, {"expert_memory": None}])
def test_the_disk_is_not_read_where_its_speed_decides_nothing(
    packed: Path, few_experts: dict[str, Any], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(pack: Path, sample_bytes: int) -> float:
        raise AssertionError("the disk was read")

    monkeypatch.setattr(loading, "disk_rate", fail)
    LocalEngine(packed, **few_experts | settings)


def test_a_disk_that_cannot_be_read_is_an_error_of_the_start(
    packed: Path, few_experts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(pack: Path, sample_bytes: int) -> float:
        raise EngineConfigError("weights.smoe cannot be read")

    monkeypatch.setattr(loading, "disk_rate", fail)
    with pytest.raises(EngineConfigError, match=r"weights\.smoe cannot be read"):
        LocalEngine(packed, **few_experts)


@pytest.mark.parametrize(("is_stored", "num_layers"), [(True, [2, 1, 2]), (False, [1, 1, 2, 2])])
def test_where_a_store_reads_the_experts_one_token_is_the_warm_up(
    packed: Path,
    few_experts: dict[str, Any],
    is_stored: bool,
    num_layers: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The budget comes from steps of one layer and of two; the first token's step reads what both share."""
    timed: list[int] = []
    num_tokens: list[int] = []
    run = ModelRunner.run

    def note(runner: ModelRunner, plan: StepPlan) -> StepResult:
        timed.append(runner.model.config.num_layers)
        num_tokens.append(plan.num_tokens)
        return run(runner, plan)

    monkeypatch.setattr(assembly, "SAMPLED_BYTES", 0)
    monkeypatch.setattr(ModelRunner, "run", note)
    LocalEngine(packed, **few_experts if is_stored else SMALL)
    assert timed == num_layers
    assert (num_tokens[0] == 1) == is_stored and set(num_tokens[1:]) == {CALIBRATION_TOKENS}


def test_layers_are_never_free(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first step that other work slowed says nothing about the layers behind it."""
    seconds = iter((0.5, 0.2))
    monkeypatch.setattr(assembly, "SAMPLED_BYTES", 0)
    monkeypatch.setattr(token_budget, "_step_seconds", lambda *arguments, **options: next(seconds))
    engine = LocalEngine(packed, **SMALL)
    layers = engine._engine.loaded.config.num_layers
    assert budget_of(engine) == cpu_token_budget(CALIBRATION_TOKENS, 0.5 + (layers - 1) * 0.05)
