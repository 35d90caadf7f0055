"""GPU memory, without a GPU: the KV pool's bytes beside a full step, and the error of a failed allocation."""

from dataclasses import replace

import pytest
import torch

from engine.capacity.sizing import kv_block_bytes, size_engine
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.startup.device_memory import CudaMemory, HostMemory, explain_out_of_memory
from model.config import ModelConfig
from model.ops.huge_pages import zeros
from tests.support.kernels.attention_cases import Heads

CUDA = torch.device("cuda")
CONFIG = EngineConfig(model="", max_num_seqs=4)


class FakeGpu:
    """torch.cuda's counters of a GPU with 1,000 bytes, 300 of them allocated; a step allocates 200 more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peak = 900  # from before, which must be reset
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700, 1000))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self._reset)

    def _reset(self, device: torch.device) -> None:
        self.peak = 300

    def step(self) -> None:
        self.peak = max(self.peak, 500)


def test_the_pool_gets_what_is_left_beside_a_full_step(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    assert CudaMemory(CUDA).bytes_left_after(gpu.step) == 700 - 200


def test_graphs_keep_the_memory_that_is_missing_while_they_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch)
    free = iter((700, 450))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (next(free), 1000))
    assert CudaMemory(CUDA).bytes_kept_by(lambda: "graphs") == 250


def test_on_a_cpu_no_step_is_run_to_size_the_pool() -> None:
    def step() -> None:
        raise AssertionError("run")

    assert HostMemory().bytes_left_after(step) > 0


def test_a_pool_sized_by_a_share_takes_no_more_than_that() -> None:
    model = replace(_model_config(), context_len=1 << 20)
    block = kv_block_bytes(CONFIG, model)
    for share in (0.5, 0.95):
        limits = size_engine(CONFIG, model, 1000 * block, 64, share)
        assert limits.num_blocks + 1 == int(1000 * share)


@pytest.mark.parametrize(
    ("given", "offered", "not_offered"),
    [
        ({}, ["--quantization int8", "--kv-cache-dtype int8", "--max-num-batched-tokens 1024"], []),
        ({"quantization": "fp8", "max_num_batched_tokens": 512}, ["--max-num-batched-tokens 256"], ["--quantization"]),
        ({"kv_cache_dtype": "int8"}, ["--quantization int8"], ["--kv-cache-dtype"]),
    ],
)
def test_out_of_memory_names_the_flags_that_lower_memory_use(
    given: dict[str, object], offered: list[str], not_offered: list[str]
) -> None:
    config = EngineConfig(model="", **given)  # type: ignore[arg-type]
    with (
        pytest.raises(EngineConfigError, match="out of memory while the weights are loaded") as caught,
        explain_out_of_memory(config, "the weights are loaded", HostMemory()),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert all(flag in str(caught.value) for flag in offered)
    assert not any(flag in str(caught.value) for flag in not_offered)
    assert "\n" not in str(caught.value)


def test_torchs_error_for_memory_of_the_cpu_is_explained_and_others_are_not() -> None:
    config = EngineConfig(model="")
    full = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
    with (
        pytest.raises(EngineConfigError, match="out of memory while the weights are loaded"),
        explain_out_of_memory(config, "the weights are loaded", HostMemory()),
    ):
        raise full
    with (
        pytest.raises(RuntimeError, match="another fault"),
        explain_out_of_memory(config, "the weights are loaded", HostMemory()),
    ):
        raise RuntimeError("another fault")


def test_a_kv_cache_larger_than_the_machine_is_an_error_that_names_its_flag() -> None:
    config = EngineConfig(model="", kv_cache_memory_bytes=1 << 60)
    with (
        pytest.raises(EngineConfigError, match=r"the KV cache is created.*--kv-cache-memory-bytes"),
        explain_out_of_memory(config, "the KV cache is created", HostMemory()),
    ):
        zeros(1 << 60, torch.int8)


def _model_config() -> ModelConfig:
    return replace(Heads(4, 2, 16).config, num_experts=4, experts_per_token=2)
