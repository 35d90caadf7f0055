"""The fingerprint names what the bits depend on, and nothing else."""

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.engine import Engine
from engine.startup.description import fingerprint, ready_message
from model.checkpoint.headers import read_headers
from model.checkpoint.identity import identify
from model.checkpoint.manifest import write_manifest
from model.ops.native.library import NativeLibrary
from model.ops.native.ops import NUMERICS
from smoe import LocalEngine
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.paths import DEMO

OTHER_NUMERICS = {"dtype": "float32", "kv_cache_dtype": "int8", "sliding_window": "none", "experts_per_token": 3}


def test_the_fingerprint_names_backend_and_instruction_set(tmp_path: Path) -> None:
    save_random_checkpoint(Shape(), tmp_path)
    for isa in NativeLibrary().isas():
        engine = LocalEngine(tmp_path, backend="native", isa=isa, num_kv_blocks=40, max_num_batched_tokens=32)
        assert engine.fingerprint.startswith(
            f"smoe-native.{NUMERICS}-{isa}-float32-kv-float32-window-none-k-2-theta-10000-weights-"
        )
    engine = LocalEngine(tmp_path, backend="reference", num_kv_blocks=40, max_num_batched_tokens=32)
    assert engine.fingerprint.startswith("smoe-reference-cpu-float32-kv-float32-window-none-k-2-theta-10000-weights-")


def test_lossless_weights_have_the_fingerprint_of_their_bits(tmp_path: Path) -> None:
    save_random_checkpoint(Shape(), tmp_path)
    settings: dict[str, Any] = {"backend": "native", "dtype": "bfloat16", "num_kv_blocks": 40}
    plain, lossless = (LocalEngine(tmp_path, quantization=name, **settings) for name in ("none", "lossless"))
    assert plain.fingerprint == lossless.fingerprint


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_fingerprint_names_the_quantization(tmp_path: Path, backend: str) -> None:
    save_random_checkpoint(Shape(), tmp_path)
    names = set()
    for quantization in ("none", "int8", "int4"):
        engine = LocalEngine(tmp_path, backend=backend, quantization=quantization, num_kv_blocks=40)
        names.add(engine.fingerprint)
        assert (f"-{quantization}-" in engine.fingerprint.partition("-kv-")[0]) == (quantization != "none")
    assert len(names) == 3


def test_the_fingerprint_changes_with_numerics_and_not_with_the_size_of_the_engine() -> None:
    def of(**settings: object) -> str:
        config = EngineConfig(model=str(DEMO), threads=1, max_num_batched_tokens=32, **settings)  # type: ignore[arg-type]
        engine = Engine.load(config)
        ready = ready_message(config, engine.loaded)
        assert ready.fingerprint == fingerprint(engine.loaded)
        assert ready.checkpoint_files == identify(read_headers(DEMO).values()).files
        return fingerprint(engine.loaded)

    base = of(num_kv_blocks=40)
    assert of(num_kv_blocks=50, max_num_seqs=3, block_size=8) == base
    others = {of(num_kv_blocks=40, **{name: value}) for name, value in OTHER_NUMERICS.items()}
    assert len(others - {base}) == len(OTHER_NUMERICS)
    assert version("smoe") not in base


def test_the_fingerprint_names_the_weights(tmp_path: Path) -> None:
    names = []
    for folder in (DEMO, tmp_path / "copy", tmp_path / "other"):
        if folder != DEMO:
            shutil.copytree(DEMO, folder)
        if folder.name == "other":
            content = bytearray((folder / "model.safetensors").read_bytes())
            content[-1] ^= 1
            (folder / "model.safetensors").write_bytes(content)
            write_manifest(folder)
        names.append(LocalEngine(folder, threads=1, num_kv_blocks=40, max_num_batched_tokens=32).fingerprint)
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 20000.0},
        {"rope_theta": 10000.001},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"type": "yarn", "factor": 1.0, "attention_factor": 1.1}},
        {"num_experts_per_tok": 3},
    ],
)
def test_an_edited_config_has_another_fingerprint(change: dict[str, object], tmp_path: Path) -> None:
    """Even where it is taken for the one in SHA256SUMS, because it is not newer."""
    config = shutil.copytree(DEMO, tmp_path / "copy") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    os.utime(config, (0, 0))
    edited, usual = (
        LocalEngine(path, threads=1, num_kv_blocks=40, max_num_batched_tokens=32) for path in (config.parent, DEMO)
    )
    assert edited.fingerprint != usual.fingerprint


def test_weights_changed_under_an_old_list_have_another_fingerprint_and_a_warning(tmp_path: Path) -> None:
    weights = shutil.copytree(DEMO, tmp_path / "copy") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed, usual = (
        Engine.load(EngineConfig(model=str(path), threads=1, num_kv_blocks=40, max_num_batched_tokens=32))
        for path in (weights.parent, DEMO)
    )
    assert fingerprint(changed.loaded) != fingerprint(usual.loaded)
    assert any(str(weights) in line for line in changed.loaded.warnings)
    assert not any("SHA256SUMS" in line for line in usual.loaded.warnings)
