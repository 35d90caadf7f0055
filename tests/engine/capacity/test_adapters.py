"""The plan counts adapters by their headers: the bytes that they take in an engine, and how many fit."""

import json
from pathlib import Path

import pytest
import torch

from engine.capacity.memory_plan import MemoryPlan, plan_memory
from engine.capacity.sizing import SHARE_BESIDE_EVICTABLE
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import EngineConfigError
from model.checkpoint.config_file import load_config
from model.lora.load import load_adapter
from tests.support.checkpoints.adapters import module_shapes, random_tensors, save_adapter
from tests.support.checkpoints.header_only import MIXTRAL_8X7B, save_headers
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.checkpoints.packs import make_pack

MIB, GIB = 1 << 20, 1 << 30


def _plan(path: Path, memory_bytes: int, lora: dict[str, Path], **settings: object) -> MemoryPlan:
    directories = {name: str(directory) for name, directory in lora.items()}
    config = EngineConfig(model=str(path), lora=directories, **settings)  # type: ignore[arg-type]
    return plan_memory(config, memory_bytes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    save_random_checkpoint(Shape(num_experts=4), path)
    return path


@pytest.fixture(scope="module")
def of_attention(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Mixtral-8x7B's headers, and those of an adapter of rank 16 for its attention in bfloat16."""
    folder = tmp_path_factory.mktemp("8x7b")
    model = save_headers(folder / "model", MIXTRAL_8X7B)
    adapter = save_adapter(folder / "adapter", {"x": torch.zeros(1)}, r=16)
    header, start = {}, 0
    for layer in range(32):
        for name, (outputs, inputs) in module_shapes(load_config(model)[0]).items():
            for part, shape in (("A", [16, inputs]), ("B", [outputs, 16])) if "self_attn" in name else ():
                key, end = f"base_model.model.model.layers.{layer}.{name}.lora_{part}.weight", start + 32 * max(shape)
                header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
                start = end
    head = json.dumps(header).encode()
    with (adapter / "adapter_model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + start)
    return model, adapter


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rank", [1, 4, 5])
def test_the_bytes_are_those_of_the_loaded_adapter(
    checkpoint: Path, dtype: torch.dtype, rank: int, tmp_path: Path
) -> None:
    model = load_config(checkpoint)[0]
    path = save_adapter(tmp_path, random_tensors(model, rank, 0, dtype, share=0.7))
    assert _plan(checkpoint, GIB, {"sql": path}).adapters == {"sql": load_adapter(path, model).num_bytes}


def test_a_planned_engine_with_adapters_has_the_size_of_a_loaded_one(checkpoint: Path, tmp_path: Path) -> None:
    path = save_adapter(tmp_path, random_tensors(load_config(checkpoint)[0]))
    plan = _plan(checkpoint, GIB, {"sql": path}, num_kv_blocks=20, max_model_len=64)
    loaded = Engine.load(plan.config).loaded
    assert loaded.runner.adapters.num_bytes == plan.adapter_bytes
    assert plan.limits is not None and loaded.limits.num_blocks == plan.limits.num_blocks


def test_adapters_of_the_real_shape_are_counted_beside_weights_and_cache(of_attention: tuple[Path, Path]) -> None:
    model, adapter = of_attention
    numbers = 16 * (4 * 4096 + 4096 + 1024 + 1024 + 4096)  # of a layer
    assert numbers * 32 * 2 == 26 * MIB
    lora = {"a": adapter, "b": adapter}
    without, plan = _plan(model, 120 * GIB, {}), _plan(model, 120 * GIB, lora)
    assert plan.adapters == {"a": 26 * MIB, "b": 26 * MIB}
    assert plan.needed_bytes == without.needed_bytes + 52 * MIB
    assert plan.held_weight_bytes == without.held_weight_bytes + 52 * MIB
    assert plan.limits and without.limits and plan.limits.num_blocks < without.limits.num_blocks
    for_three = without.needed_bytes + 100 * MIB
    assert _plan(model, for_three, lora).max_adapters == 3
    needed = [_plan(model, for_three, dict.fromkeys("abcd"[:count], adapter)).needed_bytes for count in (3, 4)]
    assert needed[0] <= for_three < needed[1]


def test_so_many_adapters_fit_beside_a_mapped_pack_that_is_larger_than_memory(checkpoint: Path, tmp_path: Path) -> None:
    pack = make_pack(checkpoint, tmp_path / "pack")
    adapter = save_adapter(tmp_path / "adapter", random_tensors(load_config(checkpoint)[0], rank=1))

    def plan(count: int, memory_bytes: int = GIB) -> MemoryPlan:
        return _plan(pack, memory_bytes, dict.fromkeys("abc"[:count], adapter), num_kv_blocks=2, max_model_len=32)

    size, kv_bytes = plan(1).adapter_bytes, plan(1).kv_cache_bytes
    memory_bytes = SHARE_BESIDE_EVICTABLE * kv_bytes + 2 * size + size // 2
    assert plan(1).weight_bytes > memory_bytes
    plans = [plan(count, memory_bytes) for count in (1, 2, 3)]
    assert [plan.limits is not None for plan in plans] == [True, True, False]
    assert [plan.max_adapters for plan in plans] == [2, 2, 2]


def test_adapters_that_do_not_fit_are_the_reason(of_attention: tuple[Path, Path]) -> None:
    model, adapter = of_attention
    weights = _plan(model, 120 * GIB, {}).weight_bytes
    plan = _plan(model, weights + 20 * MIB, {"a": adapter})
    assert plan.limits is None
    assert plan.unfit_reason == "the LoRA adapters take 26.0 MiB, and 20.0 MiB are free after the weights"


def test_adapters_that_an_engine_would_refuse_are_refused_by_the_plan(of_attention: tuple[Path, Path]) -> None:
    model, adapter = of_attention
    for settings, reason in (
        ({"device": "cuda"}, "--lora: adapters are not computed on a GPU"),
        ({"tensor_parallel_size": 2}, "--lora: adapters are not divided among ranks"),
    ):
        with pytest.raises(EngineConfigError, match=reason):
            _plan(model, 120 * GIB, {"sql": adapter}, **settings)
    with pytest.raises(EngineConfigError, match=r"nowhere: no such directory"):
        _plan(model, 120 * GIB, {"sql": adapter / "nowhere"})
