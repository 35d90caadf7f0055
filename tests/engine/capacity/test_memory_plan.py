"""The plan's numbers equal the published ones for real shapes, and a real load's for small ones."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from engine.capacity.memory_plan import MemoryPlan, plan_memory
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import EngineConfigError
from engine.startup import device_memory, loading
from engine.startup.description import ready_message
from tests.support.checkpoints.gguf import GgufShape, Type, iq2_m, q4_k_m, write_gguf
from tests.support.checkpoints.header_only import MIXTRAL_8X7B, MIXTRAL_8X22B, save_headers
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout, save_random_checkpoint
from tests.support.checkpoints.quantized import save_quantized
from tests.support.paths import DEMO

GIB = 1 << 30


def plan(path: Path, memory_bytes: int, **settings: object) -> MemoryPlan:
    return plan_memory(EngineConfig(model=str(path), **settings), memory_bytes)  # type: ignore[arg-type]


def requests_by_length(found: MemoryPlan) -> dict[int, int]:
    return {capacity.num_tokens: capacity.num_requests for capacity in found.capacities()}


@pytest.fixture(scope="module")
def mixtral_8x7b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_headers(tmp_path_factory.mktemp("8x7b"), MIXTRAL_8X7B)


@pytest.fixture(scope="module")
def mixtral_8x22b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_headers(tmp_path_factory.mktemp("8x22b"), MIXTRAL_8X22B)


def test_the_8x7b_is_counted_as_published(mixtral_8x7b: Path) -> None:
    found = plan(mixtral_8x7b, 160 * GIB)
    assert found.total_parameters == 46_702_792_704
    assert found.active_parameters == 12_879_925_248
    assert found.parameters == {
        "embedding": 131_072_000,
        "attention": 32 * 41_943_040,
        "ffn": 0,
        "experts": 32 * 8 * 176_160_768,
        "gate": 32 * 32_768,
        "norms": 65 * 4096,
        "head": 131_072_000,
    }
    assert (found.dtype, found.weight_bytes) == ("bfloat16", 93_405_585_408)
    assert found.kv_bytes_per_token == 128 << 10
    assert [capacity.num_tokens for capacity in found.capacities()] == [512, 4096, 32768]
    assert [capacity.bytes_per_request for capacity in found.capacities()] == [64 << 20, 512 << 20, 4 * GIB]


def test_the_8x22b_is_counted_as_published(mixtral_8x22b: Path) -> None:
    found = plan(mixtral_8x22b, 640 * GIB)
    assert found.total_parameters == 140_620_634_112
    assert found.active_parameters == 39_152_031_744
    assert found.kv_bytes_per_token == 224 << 10


def test_float32_doubles_weights_and_kv(mixtral_8x7b: Path) -> None:
    found = plan(mixtral_8x7b, 400 * GIB, dtype="float32")
    assert found.weight_bytes == 2 * 93_405_585_408
    assert found.kv_bytes_per_token == 256 << 10


def test_a_float16_checkpoint_is_planned_as_it_is_served_in_bfloat16(tmp_path: Path) -> None:
    found = plan(save_headers(tmp_path, MIXTRAL_8X7B, "F16", torch_dtype="float16"), 160 * GIB)
    assert (found.dtype, found.weight_bytes) == ("bfloat16", 93_405_585_408)


def test_half_of_the_memory_after_the_weights_is_the_kv_cache(mixtral_8x7b: Path) -> None:
    found = plan(mixtral_8x7b, 93_405_585_408 + 40 * GIB)
    assert found.kv_cache_bytes == 20 * GIB
    assert requests_by_length(plan(mixtral_8x7b, 93_405_585_408 + 40 * GIB, max_num_seqs=500)) == {
        512: 319,
        4096: 39,
        32768: 4,
    }


def test_no_more_requests_are_promised_than_a_step_may_have(mixtral_8x7b: Path) -> None:
    found = plan(mixtral_8x7b, 93_405_585_408 + 40 * GIB, max_num_seqs=20)
    assert requests_by_length(found) == {512: 20, 4096: 20, 32768: 4}


def test_with_the_memory_needed_one_request_of_the_whole_context_fits_and_with_less_not(mixtral_8x7b: Path) -> None:
    needed = plan(mixtral_8x7b, 160 * GIB).needed_bytes
    enough, short = plan(mixtral_8x7b, needed), plan(mixtral_8x7b, needed - 1)
    assert enough.limits and short.limits
    assert enough.limits.max_model_len == 32768
    assert short.limits.max_model_len == 32768 - 16
    assert plan(mixtral_8x7b, needed - 1, max_model_len=32768).limits is None


@pytest.mark.parametrize(
    ("memory_bytes", "settings", "part"),
    [
        (80 * GIB, {}, "the weights alone take 87.0 GiB in bfloat16, and 80.0 GiB are free"),
        (160 * GIB, {"dtype": "float32"}, "the weights alone take 174.0 GiB in float32, and 160.0 GiB are free"),
        (93_405_585_408 + 1, {}, "free memory is too small for a KV cache"),
        (100 * GIB, {"kv_cache_memory_bytes": 50 * GIB}, "after the weights; lower --kv-cache-memory-bytes"),
        (100 * GIB, {"num_kv_blocks": 50_000}, "after the weights; lower --num-kv-blocks"),
        (160 * GIB, {"max_model_len": 40_000}, "--max-model-len 32768 fits"),
    ],
)
def test_a_plan_that_does_not_fit_has_its_reason(
    mixtral_8x7b: Path, memory_bytes: int, settings: dict[str, object], part: str
) -> None:
    found = plan(mixtral_8x7b, memory_bytes, **settings)
    assert found.limits is None
    assert part in found.unfit_reason
    assert (found.kv_cache_bytes, found.capacities()) == (0, [])


def test_under_a_window_a_long_request_needs_the_window_and_a_chunk(tmp_path: Path) -> None:
    path = save_headers(tmp_path, MIXTRAL_8X7B, sliding_window=4096)
    found = plan(path, 160 * GIB)
    by_length = {capacity.num_tokens: capacity for capacity in found.capacities()}
    assert by_length[32768].bytes_per_request == (4096 + 16 + 2048) * found.kv_bytes_per_token
    assert found.limits is not None
    assert by_length[32768].num_requests == found.limits.num_blocks // (4096 // 16 + 1)


def test_a_dense_network_has_no_experts_and_all_of_it_is_active(tmp_path: Path) -> None:
    save_random_checkpoint(Shape(num_experts=0), tmp_path)
    found = plan(tmp_path, GIB)
    assert found.active_parameters == found.total_parameters == sum(found.parameters.values())
    assert found.parameters["ffn"] == 2 * 3 * 32 * 48
    assert found.parameters["experts"] == found.parameters["gate"] == 0


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_random_checkpoint_loads_into_what_was_planned(tmp_path: Path, tied: bool, dtype: str) -> None:
    model = save_random_checkpoint(Shape(tied=tied), tmp_path)
    assert plan(tmp_path, GIB).total_parameters == sum(weight.numel() for weight in model.parameters())
    assert_planned_as_loaded(tmp_path, dtype)


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_the_bundled_checkpoint_loads_into_what_was_planned(dtype: str) -> None:
    assert_planned_as_loaded(DEMO, dtype)


@pytest.mark.parametrize(("kv_cache_dtype", "bytes_per_number"), [("bf16", 2.0), ("int8", 1 + 4 / 32)])
def test_the_kv_caches_bytes_follow_its_dtype(kv_cache_dtype: str, bytes_per_number: float) -> None:
    planned = assert_planned_as_loaded(DEMO, "float32", kv_cache_dtype)
    model = planned.model
    assert model.head_dim == 32
    assert planned.kv_bytes_per_token == 2 * model.num_layers * model.num_kv_heads * 32 * bytes_per_number


@pytest.mark.parametrize(
    ("backend", "quantization"),
    [("native", "lossless"), *((b, q) for b in ("native", "reference") for q in ("none", "int8", "int4"))],
)
def test_the_bundled_checkpoints_loaded_weights_take_the_bytes_that_were_planned(
    backend: str, quantization: str
) -> None:
    config = EngineConfig(model=str(DEMO), backend=backend, quantization=quantization, threads=1)  # type: ignore[arg-type]
    planned, loaded = plan_memory(config, 8 * GIB), Engine.load(config)
    assert planned.weight_bytes == loaded.loaded.weight_bytes
    assert tensor_bytes(loaded.loaded.runner.model.weights) == pytest.approx(planned.weight_bytes, rel=0.03)


@pytest.mark.parametrize("type_of", [q4_k_m, iq2_m], ids=["Q4_K_M", "IQ2_M"])
@pytest.mark.parametrize(("backend", "tied"), [("native", False), ("native", True), ("reference", False)])
def test_weights_of_gguf_files_take_the_bytes_that_were_planned(
    backend: str, tied: bool, type_of: Callable[[str], Type], tmp_path: Path
) -> None:
    """The native backend keeps the blocks, the reference decodes them."""
    write_gguf(tmp_path / "a.gguf", GgufShape(tied=tied, vocab_size=128), type_of)
    config = EngineConfig(model=str(tmp_path / "a.gguf"), backend=backend, threads=1)  # type: ignore[arg-type]
    planned, loaded = plan_memory(config, 8 * GIB), Engine.load(config)
    assert planned.weight_kind == ("own blocks" if backend == "native" else "bfloat16")
    assert planned.weight_bytes == loaded.loaded.weight_bytes
    assert tensor_bytes(loaded.loaded.runner.model.weights) == pytest.approx(planned.weight_bytes, rel=0.03)
    warned = [warning for warning in loaded.loaded.warnings if "decoded while they are loaded" in warning]
    assert len(warned) == (backend == "reference")


@pytest.mark.parametrize("settings", [{"dtype": "float32"}, {"dtype": "auto"}])
def test_lossless_weights_are_refused_in_float32(settings: dict[str, str], tmp_path: Path) -> None:
    save_random_checkpoint(Shape(), tmp_path)  # float32
    config = EngineConfig(model=str(tmp_path), quantization="lossless", **settings)  # type: ignore[arg-type]
    with pytest.raises(EngineConfigError, match="lossless is for bfloat16, not for float32: add --dtype bfloat16"):
        plan_memory(config, 8 * GIB)


def tensor_bytes(weights: object) -> int:
    """Bytes of all tensors in a tree of dataclasses, lists and tuples."""
    if isinstance(weights, torch.Tensor):
        return weights.nbytes
    if isinstance(weights, list | tuple):
        return sum(map(tensor_bytes, weights))
    return sum(tensor_bytes(getattr(weights, part.name)) for part in fields(weights)) if is_dataclass(weights) else 0


def test_a_tied_head_is_a_separate_matrix_if_weights_are_quantized(tmp_path: Path) -> None:
    save_random_checkpoint(Shape(tied=True, vocab_size=101, dim=32), tmp_path)
    found = plan(tmp_path, GIB)
    assert found.parameters["head"] == 0
    assert [found.part_bytes[kind]["head"] for kind in ("float32", "int8", "int4")] == [0, 101 * 36, 101 * 38]


def assert_planned_as_loaded(path: Path, dtype: str, kv_cache_dtype: str = "auto") -> MemoryPlan:
    config = EngineConfig(model=str(path), dtype=dtype, kv_cache_dtype=kv_cache_dtype, threads=1, max_num_seqs=4)  # type: ignore[arg-type]
    planned = plan_memory(config, 8 * GIB)
    engine = Engine.load(config)
    ready = ready_message(engine.config, engine.loaded)
    assert planned.limits is not None
    assert planned.weight_bytes == ready.weight_bytes
    assert planned.total_parameters == ready.num_parameters
    assert planned.kv_bytes_per_token == ready.kv_bytes_per_token
    assert planned.kv_cache_bytes == ready.kv_cache_bytes
    assert planned.limits.max_model_len == ready.max_model_len
    assert planned.dtype == ready.dtype
    return planned


def test_weights_that_cannot_fit_are_refused_before_they_are_read(
    mixtral_8x22b: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> NoReturn:
        pytest.fail("weights are read")

    monkeypatch.setattr(device_memory, "available_bytes", lambda: 100 * GIB)
    monkeypatch.setattr(loading, "load_model", fail)
    with pytest.raises(EngineConfigError, match=r"the weights alone take 261\.9 GiB in bfloat16"):
        Engine.load(EngineConfig(model=str(mixtral_8x22b), device="cpu"))


@pytest.mark.parametrize(
    ("name", "kept", "decoded"),
    [
        ("GPTQ act-order", "INT4_G32", ""),
        ("MLX", "AFFINE4_G32", ""),
        ("compressed-tensors INT8", "INT8_G64", ""),
        ("FP8", "", "fp8 8-bit"),
        ("nf4", "", "bitsandbytes 4-bit g64"),
    ],
)
def test_the_plan_says_what_stays_as_stored_and_what_is_decoded(
    name: str, kept: str, decoded: str, tmp_path: Path
) -> None:
    source = save_in_layout(random_model(Shape(dim=64, hidden_dim=64, vocab_size=96)), tmp_path / "a")
    save_quantized(source, tmp_path / "q", name)
    planned, on_gpu = plan(tmp_path / "q", GIB), plan(tmp_path / "q", GIB, device="cuda")
    assert planned.kept_formats == kept and not on_gpu.kept_formats
    assert [line.split(" are decoded")[0] for line in planned.warnings] == (
        [f"weights in {decoded}"] if decoded else []
    )
    assert len(on_gpu.warnings) == 1
    assert not plan(tmp_path / "q", GIB, quantization="int8").kept_formats
