"""Kernels are compiled at load: all variants, in parallel, with progress; one that fails is named."""

from dataclasses import replace
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton

from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.startup import kernel_compilation
from engine.startup.kernel_compilation import compile_for_rank, compile_kernels
from model.cut import Cut
from model.dummy_weights import random_model
from model.group import Unconnected
from model.ops.triton.kernel_variants import (
    Address,
    KernelCompilationError,
    KernelVariant,
    VariantRecorder,
    compile_variants,
)
from model.ops.triton.launch import EARLY_OPTIONS, PLAIN_OPTIONS, launch_early, launch_on_device
from model.ops.triton.ops import TritonOps
from model.ops.triton.packed_weights import WeightFormat
from model.ops.triton.rms_norm import rms_norm, rms_norm_kernel
from tests.support.kernels.attention_cases import Heads
from tests.triton_compiled.recording import FakeDriver, empty

ARCH = 90
LIMIT_S = 60.0
CONFIG = replace(Heads(4, 2, 16).config, num_layers=3, num_experts=4, experts_per_token=2)
RANK_CONFIG = replace(CONFIG, num_heads=2, num_kv_heads=1)  # with the query heads of one of two ranks
OF_A_STEP = {
    "align_kernel", "linear_kernel", "add_norm_kernel", "chunk_kernel", "decode_kernel", "down_kernel", "draw_kernel",
    "gate_up_kernel", "logprobs_kernel", "merge_kernel", "rms_norm_kernel", "rotate_kernel",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _gpu(tmp_path: Any) -> None:
    triton.knobs.cache.dir = str(tmp_path)
    triton.runtime.driver.set_active(FakeDriver(ARCH))


def _variant(name: str, warmup: Any) -> KernelVariant:
    return KernelVariant(SimpleNamespace(__name__=name, warmup=warmup), (1,), {"ROWS": 16})


def test_variants_are_compiled_at_the_same_time_and_counted() -> None:
    """Each of two compilations waits until the other has begun."""
    both, progress = Barrier(2), list[tuple[int, int]]()
    variants = [_variant("a", lambda *_, **options: both.wait(LIMIT_S)) for _ in range(2)]
    compile_variants(variants, 2, lambda done, total: progress.append((done, total)))
    assert progress == [(0, 2), (1, 2), (2, 2)]


def test_a_kernel_that_does_not_compile_is_named_and_the_rest_is_left_out() -> None:
    compiled: list[int] = []

    def fails(*arguments: Any, **options: Any) -> None:
        raise ValueError("\nno such instruction\nat line 3")

    variants = [_variant("bad_kernel", fails), *(_variant("good", lambda *_, **__: compiled.append(1)) for _ in "ab")]
    with pytest.raises(KernelCompilationError) as caught:
        compile_variants(variants, 1, lambda done, total: None)
    assert str(caught.value) == "bad_kernel {'ROWS': 16}: ValueError: no such instruction"
    assert len(compiled) < 2


def test_a_launch_finds_what_was_compiled_in_another_thread() -> None:
    """The launch has a real tensor where the recording had one without numbers."""
    recorder = VariantRecorder(EARLY_OPTIONS)
    rms_norm(recorder, empty(3, 64, dtype=torch.bfloat16), empty(64, dtype=torch.bfloat16), 1e-5)
    [variant] = recorder.variants.values()
    compile_variants([variant], 1, lambda done, total: None)
    kernels, *_, bind = rms_norm_kernel.device_caches[ARCH]
    before = len(kernels)
    x, weight = torch.zeros(5, 64, dtype=torch.bfloat16), torch.zeros(64, dtype=torch.bfloat16)
    arguments = (x, weight, torch.empty_like(x), 64, 1e-5)
    assert x.data_ptr() % 16 == weight.data_ptr() % 16 == 0
    _, recorded, _ = bind(*variant.arguments, **variant.options)
    _, launched, _ = bind(*arguments, **variant.options)
    assert str(launched) == str(recorded)
    rms_norm_kernel.warmup(*arguments, grid=(5,), **variant.options)
    assert len(kernels) == before > 0


def test_addresses_are_as_aligned_as_their_tensors() -> None:
    whole = empty(64, dtype=torch.bfloat16)
    assert [Address(whole[start:]).data_ptr() % 16 for start in (0, 1, 4, 8)] == [0, 2, 8, 0]


@pytest.mark.parametrize(("launch", "options"), [(launch_on_device, PLAIN_OPTIONS), (launch_early, EARLY_OPTIONS)])
@pytest.mark.parametrize("weight_format", ["int8", "fp8"])
def test_the_load_compiles_the_kernels_of_all_steps(
    launch: Any, options: dict[str, Any], weight_format: WeightFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have the options of the launcher that the network has, so that its launches find them."""
    compiled, progress = list[KernelVariant](), list[tuple[int, int]]()
    monkeypatch.setattr(KernelVariant, "compile", lambda variant: compiled.append(variant))
    ops = TritonOps(torch.bfloat16, weight_format, launch=launch)
    model = random_model(CONFIG, torch.bfloat16, torch.device("cpu"), ops, seed=0)
    config = EngineConfig(model="", max_num_seqs=8, threads=2)
    compile_kernels(config, model, "bfloat16", 100, lambda done, total: progress.append((done, total)))
    assert {variant.name for variant in compiled} == OF_A_STEP
    assert all(variant.options[name] == value for variant in compiled for name, value in options.items())
    assert progress == [(done, len(compiled)) for done in range(len(compiled) + 1)]


def test_the_load_of_a_rank_compiles_its_part_and_the_sums_that_it_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gather takes place: the network has no numbers."""
    compiled = list[KernelVariant]()
    monkeypatch.setattr(KernelVariant, "compile", lambda variant: compiled.append(variant))
    ops = TritonOps(torch.bfloat16, "fp8")
    model = random_model(RANK_CONFIG, torch.bfloat16, torch.device("cpu"), ops, seed=0)
    model.config, model.group = CONFIG, Unconnected(Cut(1, 2))
    compile_for_rank(EngineConfig(model="", max_num_seqs=8, threads=2), model, "triton", lambda: None)
    assert {variant.name for variant in compiled} == OF_A_STEP | {"sum_kernel"}
    compile_for_rank(EngineConfig(model=""), model, "reference", lambda: pytest.fail("it has no kernels"))


def test_a_kernel_that_does_not_compile_ends_the_load_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(variant: KernelVariant) -> None:
        raise RuntimeError("ptxas failed\nwith a long log")

    monkeypatch.setattr(KernelVariant, "compile", fails)
    model = random_model(CONFIG, torch.bfloat16, torch.device("cpu"), TritonOps(torch.bfloat16), seed=0)
    with pytest.raises(EngineConfigError, match=r"--backend triton: \w+_kernel .*ptxas failed") as caught:
        compile_kernels(EngineConfig(model="", max_num_seqs=2), model, "bfloat16", 20)
    assert "\n" not in str(caught.value)


OF_CACHE = "; TRITON_CACHE_DIR names another directory"
FAULTS = [
    (PermissionError(13, "Permission denied", "/c/triton/AB"), f"/c/triton/AB: Permission denied{OF_CACHE}"),
    (OSError(28, "No space left on device", "/c"), f"/c: No space left on device{OF_CACHE}"),
    (FileNotFoundError(2, "No such file or directory", "/sbin/ldconfig"), "/sbin/ldconfig: No such file or directory"),
    (OSError("no libcuda"), "no libcuda"),
]


@pytest.mark.parametrize(("fault", "line"), FAULTS, ids=["in the cache", "above it", "elsewhere", "without a file"])
def test_a_file_that_triton_fails_at_ends_the_load_with_its_name(
    monkeypatch: pytest.MonkeyPatch, fault: OSError, line: str
) -> None:
    def fails(*arguments: object) -> None:
        raise fault

    monkeypatch.setattr(kernel_compilation, "triton_cache", lambda: Path("/c/triton"))
    monkeypatch.setattr(kernel_compilation, "launch_steps", fails)
    model = random_model(CONFIG, torch.bfloat16, torch.device("cpu"), TritonOps(torch.bfloat16), seed=0)
    with pytest.raises(EngineConfigError, match=f"^--backend triton: {line}$"):
        compile_kernels(EngineConfig(model="", max_num_seqs=2), model, "bfloat16", 20)
