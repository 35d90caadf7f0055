"""The fingerprint names what the bits depend on, and nothing else."""

from importlib.metadata import version
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.engine import Engine
from engine.startup.description import fingerprint, ready_message
from model.ops.native.library import NativeLibrary
from model.ops.native.ops import NUMERICS
from smoe import LocalEngine
from tests.support.checkpoints import Shape, save_random_checkpoint
from tests.support.paths import DEMO

OTHER_NUMERICS = {"dtype": "float32", "kv_cache_dtype": "int8", "sliding_window": "none", "experts_per_token": 3}


def test_the_fingerprint_names_backend_and_instruction_set(tmp_path: Path) -> None:
    save_random_checkpoint(Shape(), tmp_path)
    for isa in NativeLibrary().isas():
        engine = LocalEngine(tmp_path, backend="native", isa=isa, num_kv_blocks=40, max_num_batched_tokens=32)
        assert engine.fingerprint == f"smoe-native.{NUMERICS}-{isa}-float32-kv-float32-window-none"
    engine = LocalEngine(tmp_path, backend="reference", num_kv_blocks=40, max_num_batched_tokens=32)
    assert engine.fingerprint == "smoe-reference-cpu-float32-kv-float32-window-none"


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_fingerprint_names_the_quantization(tmp_path: Path, backend: str) -> None:
    save_random_checkpoint(Shape(), tmp_path)
    names = set()
    for quantization in ("none", "int8", "int4"):
        engine = LocalEngine(tmp_path, backend=backend, quantization=quantization, num_kv_blocks=40)
        names.add(engine.fingerprint)
        assert (f"-{quantization}-" in engine.fingerprint) == (quantization != "none")
    assert len(names) == 3


def test_the_fingerprint_changes_with_numerics_and_not_with_the_size_of_the_engine() -> None:
    def of(**settings: object) -> str:
        config = EngineConfig(model=str(DEMO), threads=1, max_num_batched_tokens=32, **settings)  # type: ignore[arg-type]
        engine = Engine.load(config)
        assert ready_message(config, engine.loaded).fingerprint == fingerprint(config, engine.loaded)
        return fingerprint(config, engine.loaded)

    base = of(num_kv_blocks=40)
    assert of(num_kv_blocks=50, max_num_seqs=3, block_size=8) == base
    others = {of(num_kv_blocks=40, **{name: value}) for name, value in OTHER_NUMERICS.items()}
    assert len(others - {base}) == len(OTHER_NUMERICS)
    assert version("smoe") not in base
