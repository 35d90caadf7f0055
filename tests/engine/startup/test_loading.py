"""Loading rejects a KV cache that does not fit, and files that change meanwhile."""

from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import EngineConfigError
from engine.startup import loading
from model.checkpoint.errors import CheckpointError
from smoe import LocalEngine
from tests.support.checkpoints import Shape, save_random_checkpoint
from tests.support.paths import DEMO


def test_a_kv_cache_larger_than_the_free_memory_is_rejected_at_the_start() -> None:
    with pytest.raises(EngineConfigError, match=r"takes 4\.0 TiB, and .* are free after the weights$"):
        Engine.load(EngineConfig(model=str(DEMO), threads=1, kv_cache_memory_bytes=1 << 42))


def test_files_that_are_replaced_while_they_are_loaded_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights could be a mixture of both."""
    save_random_checkpoint(Shape(), tmp_path)
    original = loading.load_model

    def replace_and_load(*args: Any, **options: Any) -> Any:
        (tmp_path / "model.safetensors").touch()
        return original(*args, **options)

    monkeypatch.setattr(loading, "load_model", replace_and_load)
    with pytest.raises(CheckpointError, match="replaced while they were loaded"):
        LocalEngine(tmp_path, threads=1, num_kv_blocks=40, max_num_batched_tokens=32)
