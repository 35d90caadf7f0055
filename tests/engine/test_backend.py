"""Which backend serves: the library where it is to be had, torch's slow path with a word of warning where it is not."""

from pathlib import Path

import pytest
import torch

import engine.backend as backends
from engine.backend import choose_backend, num_cores
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from model.ops.native_library import ISAS, NativeLibrary, NativeUnavailableError
from smoe import LocalEngine
from tests.checkpoints import Shape, save_random_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def _no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backends, "NativeLibrary", lambda: NativeLibrary(tmp_path / "absent.so"))


def test_auto_takes_the_native_backend_on_a_cpu() -> None:
    assert choose_backend(EngineConfig(model=""), CPU).name == "native"


def test_the_native_engine_leaves_torch_one_thread(tmp_path: Path) -> None:
    save_random_checkpoint(Shape(), tmp_path)
    torch.set_num_threads(2)
    LocalEngine(tmp_path, backend="native", threads=2, num_kv_blocks=40, max_num_batched_tokens=32)
    assert torch.get_num_threads() == 1


def test_the_fingerprint_names_backend_and_instruction_set(tmp_path: Path) -> None:
    save_random_checkpoint(Shape(), tmp_path)
    for isa in NativeLibrary().isas():
        engine = LocalEngine(tmp_path, backend="native", isa=isa, num_kv_blocks=40, max_num_batched_tokens=32)
        assert f"-native-{isa}-float32-" in engine.fingerprint
    engine = LocalEngine(tmp_path, backend="reference", num_kv_blocks=40, max_num_batched_tokens=32)
    assert "-reference-cpu-float32-" in engine.fingerprint


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_fingerprint_names_the_quantisation(tmp_path: Path, backend: str) -> None:
    save_random_checkpoint(Shape(), tmp_path)
    names = set()
    for quantization in ("none", "int8", "int4"):
        engine = LocalEngine(tmp_path, backend=backend, quantization=quantization, num_kv_blocks=40)
        names.add(engine.fingerprint)
        assert (f"-{quantization}-" in engine.fingerprint) == (quantization != "none")
    assert len(names) == 3


@pytest.mark.usefixtures("_no_library")
def test_without_the_library_auto_serves_slowly_and_says_so_in_one_line() -> None:
    backend = choose_backend(EngineConfig(model=""), CPU)
    assert backend.name == "reference"
    [warning] = backend.warnings
    assert "no C++ compiler" in warning and "slow" in warning and "\n" not in warning


@pytest.mark.usefixtures("_no_library")
@pytest.mark.parametrize("asked", [{"backend": "native"}, {"isa": "avx2"}])
def test_without_the_library_nobody_gets_another_backend_than_asked_for(asked: dict[str, str]) -> None:
    with pytest.raises(EngineConfigError, match="not built"):
        choose_backend(EngineConfig(model="", **asked), CPU)  # type: ignore[arg-type]


def test_an_instruction_set_that_this_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeLibrary, "isas", lambda self: ["portable"])
    with pytest.raises(EngineConfigError, match="no avx2 kernels here; there are portable"):
        choose_backend(EngineConfig(model="", isa="avx2"), CPU)


def test_a_file_that_is_no_library_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"not a library")
    with pytest.raises(NativeUnavailableError, match="does not load"):
        NativeLibrary(tmp_path / "broken.so")


def test_the_portable_kernels_run_everywhere() -> None:
    available = NativeLibrary().isas()
    assert available[0] == "portable" and available == [isa for isa in ISAS if isa in available]


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1)])
def test_the_cgroups_quota_limits_the_threads(tmp_path: Path, quota: str, cores: int | None) -> None:
    unlimited = num_cores(tmp_path)
    (tmp_path / "cpu.max").write_text(quota)
    assert num_cores(tmp_path) == (cores or unlimited)
