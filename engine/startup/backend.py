"""Choice of the backend for a device: the user's choice, or the fastest available one."""

from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

from engine.capacity.machine.host_resources import num_cores
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.heartbeat import Heartbeat
from model.ops.interface import Ops
from model.ops.native.library import NativeLibrary, NativeOutdatedError, NativeUnavailableError
from model.ops.native.ops import NUMERICS, NativeOps
from model.ops.quantization import Quantization
from model.ops.reference.ops import ReferenceOps

if TYPE_CHECKING:
    from model.ops.triton.packed_weights import WeightFormat

OLDEST_MAJOR = 8  # lowest compute capability that the Triton kernels support


@dataclass(frozen=True)
class Backend:
    """A backend and its names."""

    ops: Ops
    name: str  # native, triton or reference
    numerics: str  # the name, and everything else in the backend that affects bits
    quantization: str  # of the weights: none, lossless, int8, int4, fp8, or the block formats of a file ("Q4_K+Q6_K")
    warnings: tuple[str, ...] = ()

    def with_blocks(self, formats: str) -> "Backend":
        """Return the backend with weights in the block formats of a file, which its names then contain."""
        return replace(self, numerics=f"{self.numerics}-{formats}", quantization=formats)


def choose_backend(
    config: EngineConfig, device: torch.device, dtype: torch.dtype, heartbeat: Heartbeat | None = None
) -> Backend:
    """Choose the backend for weights and activations in `dtype`. The native backend's kernels advance `heartbeat`.

    Also sets torch's number of threads: 1 with the native backend, because torch's threads would slow down its own.
    Raises EngineConfigError if the configured backend is not available.
    """
    if config.deterministic and config.backend == "reference":
        raise EngineConfigError("--deterministic: the reference backend's bits change with the batch")
    if config.backend == "triton" or (config.backend == "auto" and device.type == "cuda"):
        return _triton(config, device, dtype)
    try:
        if config.backend != "reference":
            return _native(config, device, heartbeat)
    except NativeUnavailableError as error:
        is_configured = config.backend == "native" or config.isa != "auto" or config.deterministic
        if is_configured or isinstance(error, NativeOutdatedError):
            flag = "--backend native" if config.isa == "auto" else f"--isa {config.isa}"
            raise EngineConfigError(f"{flag}: {error}") from None
        return _reference(config, device, f"{error}; using the slow reference backend")
    return _reference(config, device)


def _native(config: EngineConfig, device: torch.device, heartbeat: Heartbeat | None) -> Backend:
    """Create the native backend. Its bits never depend on the batch, so --deterministic changes nothing."""
    if device.type != "cpu":
        raise EngineConfigError(f"--backend native runs on the CPU, not on {device.type}: add --device cpu")
    threads = config.threads or num_cores()
    ops = NativeOps(NativeLibrary(), threads, None if config.isa == "auto" else config.isa, _quantization(config))
    if heartbeat is not None:
        ops.set_heartbeat(heartbeat.counter)
    torch.set_num_threads(1)
    return Backend(ops, "native", f"native.{NUMERICS}-{ops.isa}{_suffix(config.quantization)}", config.quantization)


def _triton(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> Backend:
    if device.type != "cuda":
        raise EngineConfigError(f"--backend triton runs on a CUDA device, not on {device.type}")
    if config.quantization in ("lossless", "int4"):
        raise EngineConfigError(
            f"--quantization {config.quantization} does not run on the triton backend; int8 and fp8 do"
        )
    try:
        from model.ops.triton.launch import launcher_for
        from model.ops.triton.ops import TritonOps
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        if config.backend == "triton" or config.deterministic or config.quantization == "fp8":
            raise EngineConfigError("--backend triton: the package triton is not installed") from None
        return _reference(config, device, "triton is not installed; using the slow reference backend")
    major, minor = torch.cuda.get_device_capability(device)
    if major < OLDEST_MAJOR:
        raise EngineConfigError(f"--backend triton: this GPU is sm_{major}{minor}, the kernels need sm_80 or newer")
    formats: dict[str, WeightFormat] = {"none": "plain", "int8": "int8", "fp8": "fp8"}
    arch = 10 * major + minor
    # Among ranks a kernel may follow a gather, which is no kernel of ours and does not let the next one start early.
    early = not config.no_programmatic_launch and config.tensor_parallel_size == 1
    launch = launcher_for(arch, early=early)
    ops = TritonOps(dtype, formats[config.quantization], config.deterministic, launch, arch)
    kind = "-deterministic" if config.deterministic else ""
    compiler = f"triton-{version('triton')}-sm{major}{minor}"
    return Backend(ops, "triton", f"{compiler}{kind}{_suffix(config.quantization)}", config.quantization)


def _reference(config: EngineConfig, device: torch.device, *warnings: str) -> Backend:
    if config.quantization == "lossless":
        raise EngineConfigError("; ".join((*warnings, "--quantization lossless runs only on the native backend")))
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    numerics = f"reference-{device.type}{_suffix(config.quantization)}"
    return Backend(ReferenceOps(_quantization(config)), "reference", numerics, config.quantization, warnings)


def _quantization(config: EngineConfig) -> Quantization:
    if config.quantization == "fp8":
        raise EngineConfigError("--quantization fp8 runs only on the triton backend; int8 runs here too")
    return config.quantization


def _suffix(quantization: str) -> str:
    """Return the part of the numerics' name; lossless weights give the same bits as none."""
    return "" if quantization in ("none", "lossless") else f"-{quantization}"
