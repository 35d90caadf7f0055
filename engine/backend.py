"""Which backend computes on this device: the user's choice, or the fastest one that is to be had."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.memory import CGROUP_V2
from model.ops import Ops
from model.ops.native import NativeOps
from model.ops.native_library import NativeLibrary, NativeUnavailableError
from model.ops.reference import ReferenceOps


@dataclass(frozen=True)
class Backend:
    """A backend, and how it calls itself."""

    ops: Ops
    name: str  # native or reference
    numerics: str  # the name, and whatever else of the backend decides about bits
    warnings: tuple[str, ...] = ()


def choose_backend(config: EngineConfig, device: torch.device) -> Backend:
    """Also sets torch's own number of threads: one beside the native backend's, which would only get in their way.

    Raises EngineConfigError where the backend asked for is not to be had.
    """
    try:
        if config.backend != "reference":
            return _native(config, device)
    except NativeUnavailableError as error:
        if config.backend == "native" or config.isa != "auto":
            raise EngineConfigError(f"--backend native: {error}") from None
        return _reference(config, device, f"{error}; the reference backend serves, and it is slow")
    return _reference(config, device)


def _native(config: EngineConfig, device: torch.device) -> Backend:
    if device.type != "cpu":
        if config.backend == "native":
            raise EngineConfigError(f"--backend native runs on the CPU, not on {device.type}: add --device cpu")
        return _reference(config, device)
    threads = config.threads or num_cores()
    ops = NativeOps(NativeLibrary(), threads, None if config.isa == "auto" else config.isa, config.quantization)
    torch.set_num_threads(1)
    return Backend(ops, "native", f"native-{ops.isa}{_named(config.quantization)}")


def _reference(config: EngineConfig, device: torch.device, *warnings: str) -> Backend:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    numerics = f"reference-{device.type}{_named(config.quantization)}"
    return Backend(ReferenceOps(config.quantization), "reference", numerics, warnings)


def _named(quantization: str) -> str:
    return "" if quantization == "none" else f"-{quantization}"


def num_cores(cgroup: Path = CGROUP_V2) -> int:
    """Cores that this process may run on, as its affinity and its cgroup's quota have it; at least 1."""
    return max(1, min(len(os.sched_getaffinity(0)), _cgroup_cores(cgroup / "cpu.max")))


def _cgroup_cores(quota_file: Path) -> int:
    """The whole cores in "150000 100000" (microseconds in every so many); beyond any machine for "max ..."."""
    if not quota_file.is_file():
        return 2**31
    quota, period = quota_file.read_text().split()
    return 2**31 if quota == "max" else int(quota) // int(period)
