"""Packs as the engine serves them: settings that follow from the pack, checks, and what a bus error means. No torch."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.capacity.expert_memory import check_expert_memory
from engine.capacity.machine.page_cache import cached_bytes
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from model.checkpoint.errors import CheckpointError
from model.checkpoint.pack import check
from model.checkpoint.pack.header import WEIGHTS_NAME, PackHeader, is_pack, read_header
from model.checkpoint.pack.side_files import VOCABULARY_NAME


def settings_of_pack(config: EngineConfig) -> EngineConfig:
    """Return the config with what a pack decides: quantization, dtype, device and backend. Others stay as they are.

    Raises EngineConfigError for settings that contradict the pack, or that only packs have; CheckpointError for a
    damaged pack.
    """
    path = Path(config.model)
    header = read_header(path) if is_pack(path) else None
    check_expert_memory(config, header)
    if header is None:
        if config.weights_memory not in ("auto", "copy"):
            raise EngineConfigError(
                f"--weights-memory {config.weights_memory} needs a pack; make one with: smoe pack {path} -o DIR"
            )
        return config
    _check_settings(config, header, path)
    return msgspec.structs.replace(
        config,
        quantization=header.quantization,
        dtype=header.dtype,
        device="cpu",
        backend="native",
        weights_memory="map" if config.weights_memory == "auto" else config.weights_memory,
    )


def are_weights_evictable(config: EngineConfig) -> bool:
    """Return whether the system may drop the weights and read them again, by a config of settings_of_pack()."""
    return config.weights_memory == "map"


def pack_advice(config: EngineConfig, seconds: float) -> str:
    """Return a line with the command that makes later starts faster than this one, whose weights took `seconds`."""
    flag = "" if config.quantization == "none" else f" --quantization {config.quantization}"
    dtype = "" if config.dtype == "auto" else f" --dtype {config.dtype}"
    return f"the weights took {seconds:.0f} s; a pack is mapped instead: smoe pack {config.model}{dtype}{flag} -o DIR"


def is_vocabulary_of_pack(file: Path) -> bool:
    """Return whether a GGUF file is what a pack keeps of one: its fields, for the tokenizer."""
    return file.name == VOCABULARY_NAME and is_pack(file.parent)


def kind_of(path: Path) -> str:
    """Return what a checkpoint is, if it is no directory of safetensors files: "GGUF file", "pack" or ""."""
    if path.is_file():
        return "GGUF file"
    return "pack" if is_pack(path) else ""


def check_pack(directory: Path, on_progress: Callable[[int, int], None]) -> int:
    """Compare all checksums of a pack; return the number of its tensors. Raises EngineConfigError."""
    try:
        if not is_pack(directory):
            raise EngineConfigError(f"{directory} is not a pack; make one with: smoe pack {directory} -o DIR")
        return check.verify_pack(directory, on_progress)
    except CheckpointError as error:
        raise EngineConfigError(str(error)) from None


def cached_weight_bytes(model: Path) -> int | None:
    """Return the bytes of a pack's file that are in memory; None if it is not a pack, or the system cannot tell."""
    file = model / WEIGHTS_NAME
    return cached_bytes(file) if file.is_file() else None


def lost_weights_reason(model: str, *, had_bus_error: bool) -> str | None:
    """Return in one line which weights an engine that has ended lost; None if it served no pack.

    `had_bus_error`: SIGBUS ended it. Else one of its ranks may have got it: then None as well if the file is complete.
    """
    path = Path(model)
    try:
        if not is_pack(path):
            return None
        if not had_bus_error:
            with contextlib.suppress(CheckpointError):
                read_header(path)
                return None
        return check.bus_error_reason(path)
    except CheckpointError as error:
        return str(error)


def _check_settings(config: EngineConfig, header: PackHeader, path: Path) -> None:
    """Raise EngineConfigError for the first setting that the pack cannot follow."""
    another = f"make another pack with: smoe pack {header.source} -o DIR"
    if config.quantization not in ("none", header.quantization):
        packed = "is not quantized" if header.quantization == "none" else f"is packed in {header.quantization}"
        flag = f"--quantization {config.quantization}"
        raise EngineConfigError(f"{flag}: {path} {packed}; {another} {flag}")
    if config.dtype not in ("auto", header.dtype):
        flag = f"--dtype {config.dtype}"
        raise EngineConfigError(f"{flag}: {path} is packed in {header.dtype}; {another} {flag}")
    if config.device == "cuda" or config.backend not in ("auto", "native"):
        flag = "--device cuda" if config.device == "cuda" else f"--backend {config.backend}"
        raise EngineConfigError(f"{flag}: packs are for the native backend on a CPU; serve {header.source} instead")
    if config.nnodes > 1:
        raise EngineConfigError(
            f"--nnodes {config.nnodes}: a pack is served on one host; serve {header.source} instead"
        )
    if config.tensor_parallel_size > 1 and config.weights_memory == "copy":
        raise EngineConfigError("--weights-memory copy: each rank would copy the whole pack; ranks share it with map")
