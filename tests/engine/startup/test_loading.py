"""Loading rejects a KV cache that does not fit, and files that change meanwhile."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import engine as engine_module
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import EngineConfigError
from engine.startup import assembly, loading
from engine.startup.assembly import LoadedModel
from engine.startup.backend import Backend
from engine.startup.description import ready_message
from engine.startup.device_memory import HostMemory
from model.checkpoint.errors import CheckpointError
from model.kv_pool import KvPool
from model.mixtral_cuda_graphs import EagerRecorder, GraphedMixtral, GraphRecorder
from model.ops.reference.ops import ReferenceOps
from smoe import LocalEngine
from tests.support.checkpoints.mixtral import Shape, edit_tensors, save_random_checkpoint
from tests.support.checkpoints.packs import make_pack
from tests.support.kernels.attention_cases import Heads
from tests.support.paths import DEMO


def test_a_kv_cache_larger_than_the_free_memory_is_rejected_at_the_start() -> None:
    with pytest.raises(EngineConfigError, match=r"takes 4\.0 TiB, and .*; lower --kv-cache-memory-bytes$"):
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


class FakeGpuMemory:
    """Memory of a GPU of 9 MB: graphs keep 1 MB. Notes in which order it is asked."""

    pool_share = 1.0

    def __init__(self) -> None:
        self.events: list[str] = []

    def free_bytes(self) -> int:
        return 9_000_000

    def bytes_left_after(self, largest_steps: Callable[[], None]) -> int:
        self.events.append("steps")
        return 9_000_000

    def bytes_kept_by(self, build: Callable[[], object]) -> int:
        build()
        self.events.append("graphs")
        return 1_000_000


@pytest.mark.parametrize("enforce_eager", [False, True])
def test_graphs_are_captured_before_the_kv_pool_is_sized_and_not_at_all_if_eager(
    monkeypatch: pytest.MonkeyPatch, enforce_eager: bool
) -> None:
    """The reference backend takes the place of Triton's: only who captures, and when, is tested."""
    memory, captured = FakeGpuMemory(), list[int]()

    class Recorder:
        def record(self, work: Callable[[], object]) -> Callable[[], object]:
            captured.append(1)
            return work

    backend = Backend(ReferenceOps(), "triton", "triton", "none")
    monkeypatch.setattr(loading, "choose_backend", lambda *arguments: backend)
    for module in (loading, assembly):
        monkeypatch.setattr(module, "memory_of", lambda device: memory)
    monkeypatch.setattr(assembly, "compile_kernels", lambda *arguments: memory.events.append("kernels"))

    def recorder_for(device: torch.device, *, is_eager: bool, in_group: bool) -> GraphRecorder:
        assert not in_group
        return EagerRecorder() if is_eager else Recorder()

    monkeypatch.setattr(assembly, "recorder_for", recorder_for)
    shape = replace(Heads(4, 2, 16).config, num_layers=2)
    config = EngineConfig(
        model="", device="cpu", max_num_seqs=4, max_num_batched_tokens=32, enforce_eager=enforce_eager
    )
    loaded = loading.load_random(config, shape)
    assert memory.events == ["kernels", "steps", "graphs"]
    assert loaded.limits.num_blocks + 1 == 8_000_000 // loaded.kv_block_bytes
    assert len(captured) == (0 if enforce_eager else 2 * 3)  # 1, 2 and 4 rows, over the trial's pool and the real one
    assert isinstance(loaded.runner.model, GraphedMixtral) is not enforce_eager


def test_where_memory_is_short_the_cache_is_smaller_and_takes_its_memory_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    populated: list[KvPool] = []
    monkeypatch.setattr(KvPool, "populate", lambda pool: populated.append(pool))
    monkeypatch.setattr(assembly, "memory_limit_bytes", lambda: 600 << 20)
    monkeypatch.setattr(HostMemory, "free_bytes", lambda self: 400 << 20)

    def load(usual_mib: int) -> LoadedModel:
        sizes = (usual_mib << 20, min(usual_mib, 500) << 20, min(usual_mib, 450) << 20)
        usual, ample, least = sizes
        config = EngineConfig(
            model=str(DEMO), threads=1, server_bytes=usual, ample_server_bytes=ample, min_server_bytes=least
        )
        return loading.load(config, lambda phase, done, total: None)

    enough, short = load(300), load(700)
    assert enough.limits.memory_share == 1.0
    assert short.limits.memory_share == 0.5 and populated == [short.kv_pool]
    assert short.limits.num_blocks < enough.limits.num_blocks
    assert short.limits.max_model_len == enough.limits.max_model_len
    total = short.weight_bytes + short.kv_block_bytes * (short.limits.num_blocks + 1)
    assert (100 << 20) - 2 * short.kv_block_bytes < total <= 100 << 20  # beside ample 500 MiB
    assert ready_message(EngineConfig(model=str(DEMO)), short).memory_share == short.limits.memory_share

    num_parsers: list[int] = []
    monkeypatch.setattr(engine_module, "GrammarQueue", lambda compiler, number, tenants: num_parsers.append(number))
    monkeypatch.setattr(engine_module, "memory_limit_bytes", lambda: 24 << 30)
    for loaded in (enough, short):
        Engine(EngineConfig(model=str(DEMO)), loaded)
    assert num_parsers == [64, 2]


@pytest.mark.parametrize("is_packed", [False, True])
def test_matrices_that_lossless_weights_cannot_hold_are_counted(tmp_path: Path, is_packed: bool) -> None:
    def put_any_exponents(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("lm_head.weight", "model.layers.1.self_attn.o_proj.weight"):
            tensors[name] *= torch.logspace(-30, 3, tensors[name].shape[1])

    path = tmp_path / "model"
    save_random_checkpoint(Shape(), path)
    edit_tensors(path, put_any_exponents)
    settings: dict[str, Any] = {"quantization": "lossless", "dtype": "bfloat16"}
    if is_packed:
        path, settings = make_pack(path, tmp_path / "pack", **settings), {}
    engine = Engine.load(EngineConfig(model=str(path), threads=1, num_kv_blocks=40, **settings))
    [warning] = [line for line in engine.loaded.warnings if "lossless" in line]
    assert warning.startswith("2 matrices have too many different exponents") and "stay in bfloat16" in warning


def test_experts_that_lossless_weights_cannot_hold_are_named(tmp_path: Path) -> None:
    def put_any_exponents(tensors: dict[str, torch.Tensor]) -> None:
        weight = tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
        weight *= torch.logspace(-30, 3, weight.shape[1])

    save_random_checkpoint(Shape(), tmp_path)
    edit_tensors(tmp_path, put_any_exponents)
    config = EngineConfig(model=str(tmp_path), threads=1, dtype="bfloat16", quantization="lossless")
    with pytest.raises(CheckpointError, match=r"^layer 1: expert 3 has too many different exponents"):
        Engine.load(config)
