"""Choice of the backend: the native library if it is there, else torch's slow path with a warning."""

import sys
from pathlib import Path

import pytest
import torch

import engine.startup.backend as backends
import model.ops.native.library as native_library
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.startup.backend import choose_backend
from model.ops.native.library import ISAS, NativeLibrary, NativeUnavailableError
from model.ops.triton.ops import TritonOps
from smoe import LocalEngine
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def _no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backends, "NativeLibrary", lambda: NativeLibrary(tmp_path / "absent.so"))


def test_auto_takes_the_native_backend_on_a_cpu() -> None:
    assert choose_backend(EngineConfig(model=""), CPU, torch.float32).name == "native"


def test_the_native_engine_leaves_torch_one_thread(tmp_path: Path) -> None:
    save_random_checkpoint(Shape(), tmp_path)
    torch.set_num_threads(2)
    LocalEngine(tmp_path, backend="native", threads=2, num_kv_blocks=40, max_num_batched_tokens=32)
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("_no_library")
def test_without_the_library_auto_takes_the_reference_backend_with_one_line_of_warning() -> None:
    backend = choose_backend(EngineConfig(model=""), CPU, torch.float32)
    assert backend.name == "reference"
    [warning] = backend.warnings
    assert "no C++ compiler" in warning and "slow" in warning and "\n" not in warning


@pytest.mark.usefixtures("_no_library")
@pytest.mark.parametrize("settings", [{"backend": "native"}, {"isa": "avx2"}])
def test_without_the_library_no_other_backend_replaces_the_configured_one(settings: dict[str, str]) -> None:
    with pytest.raises(EngineConfigError, match="not built"):
        choose_backend(EngineConfig(model="", **settings), CPU, torch.float32)  # type: ignore[arg-type]


def test_a_library_of_other_sources_is_refused_and_never_replaced_by_the_slow_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native_library, "ABI_VERSION", native_library.ABI_VERSION + 1)
    with pytest.raises(EngineConfigError, match="install smoe again"):
        choose_backend(EngineConfig(model=""), CPU, torch.float32)


def test_an_instruction_set_that_this_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeLibrary, "isas", lambda self: ["portable"])
    with pytest.raises(EngineConfigError, match=r"^--isa avx2: avx2 kernels are not available here; .* portable"):
        choose_backend(EngineConfig(model="", isa="avx2"), CPU, torch.float32)


def test_a_file_that_is_no_library_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"not a library")
    with pytest.raises(NativeUnavailableError, match="cannot load"):
        NativeLibrary(tmp_path / "broken.so")


def test_the_portable_kernels_run_everywhere() -> None:
    available = NativeLibrary().isas()
    assert available[0] == "portable" and available == [isa for isa in ISAS if isa in available]


CUDA = torch.device("cuda")
HALF = torch.bfloat16


@pytest.fixture
def _h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.mark.usefixtures("_h100")
def test_auto_takes_the_triton_backend_on_a_gpu_and_its_numerics_name_everything_that_affects_bits() -> None:
    backend = choose_backend(EngineConfig(model=""), CUDA, HALF)
    assert backend.name == "triton" and backend.numerics.endswith("-sm90")
    deterministic = choose_backend(EngineConfig(model="", deterministic=True, quantization="fp8"), CUDA, HALF)
    assert deterministic.numerics == f"{backend.numerics}-deterministic-fp8"


@pytest.mark.parametrize(
    ("capability", "off", "is_early"), [((9, 0), False, True), ((9, 0), True, False), ((8, 9), False, False)]
)
def test_kernels_start_early_from_hopper_on_unless_switched_off(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], off: bool, is_early: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    ops = choose_backend(EngineConfig(model="", no_programmatic_launch=off), CUDA, HALF).ops
    assert isinstance(ops, TritonOps)
    assert ("launch_pdl" in ops.launcher_options) is is_early


@pytest.mark.usefixtures("_h100")
def test_without_triton_a_gpu_runs_the_reference_backend_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "model.ops.triton.ops", raising=False)
    for module in [name for name in sys.modules if name.startswith("model.ops.triton.")]:
        monkeypatch.delitem(sys.modules, module)
    backend = choose_backend(EngineConfig(model=""), CUDA, HALF)
    assert backend.name == "reference" and "triton is not installed" in backend.warnings[0]
    for settings in ({"backend": "triton"}, {"deterministic": True}, {"quantization": "fp8"}):
        with pytest.raises(EngineConfigError, match="triton is not installed"):
            choose_backend(EngineConfig(model="", **settings), CUDA, HALF)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "device", "message"),
    [
        ({"backend": "triton"}, CPU, "runs on a CUDA device, not on cpu"),
        ({"backend": "native"}, CUDA, "add --device cpu"),
        ({"quantization": "int4"}, CUDA, "int4 does not run on the triton backend"),
        ({"quantization": "lossless"}, CUDA, "lossless does not run on the triton backend"),
        ({"quantization": "lossless", "backend": "reference"}, CPU, "lossless runs only on the native backend"),
        ({"quantization": "fp8"}, CPU, "fp8 runs only on the triton backend"),
        ({"quantization": "fp8", "backend": "reference"}, CPU, "fp8 runs only on the triton backend"),
        ({"deterministic": True, "backend": "reference"}, CUDA, "bits change with the batch"),
    ],
)
def test_what_a_backend_cannot_do_is_refused(settings: dict[str, object], device: torch.device, message: str) -> None:
    with pytest.raises(EngineConfigError, match=message):
        choose_backend(EngineConfig(model="", **settings), device, HALF)  # type: ignore[arg-type]


def test_a_gpu_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(EngineConfigError, match="this GPU is sm_75, the kernels need sm_80"):
        choose_backend(EngineConfig(model="", backend="triton"), CUDA, HALF)


def test_deterministic_on_a_cpu_takes_the_native_backend() -> None:
    assert choose_backend(EngineConfig(model="", deterministic=True), CPU, torch.float32).name == "native"
