"""Settings that a pack decides, and the memory beside weights that the system may drop."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.capacity.memory_plan import plan_memory
from engine.capacity.packs import check_pack, lost_weights_reason, settings_of_pack
from engine.capacity.sizing import bytes_beside_evictable, eviction_warnings
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from model.checkpoint.pack.header import WEIGHTS_NAME
from tests.support.checkpoints.packs import make_pack
from tests.support.paths import DEMO

GIB = 1 << 30


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pack(DEMO, tmp_path_factory.mktemp("packs") / "p", quantization="int8")


def test_a_pack_decides_quantization_dtype_device_and_backend(packed: Path) -> None:
    found = settings_of_pack(EngineConfig(model=str(packed)))
    names = ("quantization", "dtype", "device", "backend", "weights_memory")
    assert [getattr(found, name) for name in names] == ["int8", "bfloat16", "cpu", "native", "map"]
    same = settings_of_pack(EngineConfig(model=str(packed), quantization="int8", weights_memory="copy"))
    assert same.weights_memory == "copy"
    assert settings_of_pack(EngineConfig(model=str(DEMO))) == EngineConfig(model=str(DEMO))


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    (
        {"quantization": "int4"},
        r"--quantization int4: .* is packed in int8; make another pack with: smoe pack .* int4$",
    ),
    ({"dtype": "float32"}, r"--dtype float32: .* is packed in bfloat16; make another pack with: smoe pack .* float32$"),
    ({"device": "cuda"}, r"--device cuda: packs are for the native backend on a CPU; serve .*demo instead$"),
    ({"backend": "reference"}, r"--backend reference: packs are for the native backend"),
    ({"nnodes": 2, "tensor_parallel_size": 2}, r"--nnodes 2: a pack is served on one host; serve .*demo instead$"),
    ({"weights_memory": "copy", "tensor_parallel_size": 2}, r"--weights-memory copy: each rank would copy the whole"),
]


@pytest.mark.parametrize(("settings", "message"), CONTRADICTIONS)
def test_settings_that_contradict_the_pack_are_refused_with_the_way_out(
    settings: dict[str, Any], message: str, packed: Path
) -> None:
    with pytest.raises(EngineConfigError, match=message):
        settings_of_pack(EngineConfig(model=str(packed), **settings))


def test_a_plan_of_a_pack_is_that_of_its_source(packed: Path) -> None:
    """The same weights, KV cache and limits, without reading weights."""
    own, source = (
        plan_memory(EngineConfig(model=str(path), quantization=quantization), GIB)
        for path, quantization in ((packed, "none"), (DEMO, "int8"))
    )
    assert own.weight_bytes == source.weight_bytes and own.weight_kind == "int8"
    assert own.limits == source.limits and own.warnings == source.warnings == ()


def test_a_pack_larger_than_memory_is_planned_with_a_warning(packed: Path) -> None:
    memory_bytes = plan_memory(EngineConfig(model=str(packed)), GIB).weight_bytes * 3 // 4
    mapped = plan_memory(EngineConfig(model=str(packed)), memory_bytes)
    assert mapped.limits and "every step reads a part of them from the disk again" in mapped.warnings[0]
    copied = plan_memory(EngineConfig(model=str(packed), weights_memory="copy"), memory_bytes)
    assert copied.limits is None and "the weights alone take" in copied.unfit_reason


def test_beside_evictable_weights_at_least_an_eighth_of_the_memory_is_left() -> None:
    assert bytes_beside_evictable(24 * GIB, 10 * GIB) == 14 * GIB
    assert bytes_beside_evictable(24 * GIB, 23 * GIB) == bytes_beside_evictable(24 * GIB, 50 * GIB) == 3 * GIB
    assert eviction_warnings(24 * GIB, 24 * GIB) == ()
    [warning] = eviction_warnings(24 * GIB, 27 * GIB)
    assert warning.startswith("the weights take 27.0 GiB, and 24.0 GiB are free: ")


def test_only_packs_are_checked_and_explained(packed: Path, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    assert check_pack(packed, lambda *progress: done.append(progress)) == len(done)
    assert done[-1][0] == done[-1][1] > 0
    with pytest.raises(EngineConfigError, match=r"is not a pack; make one with: smoe pack"):
        check_pack(DEMO, lambda done, total: None)
    assert lost_weights_reason(str(DEMO), had_bus_error=True) is None
    assert "smoe pack --check" in (lost_weights_reason(str(packed), had_bus_error=True) or "")
    assert lost_weights_reason(str(packed), had_bus_error=False) is None
    cut = shutil.copytree(packed, tmp_path / "cut")
    os.truncate(cut / WEIGHTS_NAME, 1 << 20)
    assert "was cut while it was served" in (lost_weights_reason(str(cut), had_bus_error=False) or "")
