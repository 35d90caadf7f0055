"""An adapter that cannot be loaded while the engine runs is an answer, whatever the fault."""

from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.startup import adapters
from engine.startup.adapters import FAILED, NOT_LOADED, AdapterLoading
from model.checkpoint.config_file import load_config
from tests.support.conditions import wait_until
from tests.support.paths import DEMO

CPU_IS_FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    ("fault", "answer"),
    [(ValueError("embedded null byte"), FAILED), (MemoryError(), NOT_LOADED), (CPU_IS_FULL, NOT_LOADED)],
    ids=["any", "memory", "torch's memory"],
)
def test_a_fault_of_loading_is_the_answer(fault: Exception, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(adapters, "load_adapter", fail)
    loading = AdapterLoading(EngineConfig(model=str(DEMO)), load_config(DEMO)[0], "cpu", 1 << 30)
    loading.submit(7, Path("anywhere"))
    answers: list[tuple[int, object]] = []

    def has_answered() -> bool:
        answers.extend(loading.pop_completed())
        return bool(answers)

    wait_until(has_answered)
    assert answers == [(7, answer)]
