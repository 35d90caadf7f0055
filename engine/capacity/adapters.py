"""Memory of the LoRA adapters of a configuration, from their headers alone. No torch."""

from collections.abc import Callable
from pathlib import Path

from engine.capacity.machine.host_resources import format_bytes
from engine.capacity.sizing import EngineLimits, kv_block_bytes
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from model.checkpoint.adapter.config import read_adapter_config
from model.checkpoint.adapter.tensors import read_adapter_tensors
from model.checkpoint.errors import CheckpointError
from model.config import ModelConfig


def adapter_bytes(
    config: EngineConfig, model: ModelConfig, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, int]:
    """Return the bytes that each adapter takes in memory, by name. Calls `on_progress` after each one with the number
    of those that are done and of all.

    Raises CheckpointError for one that cannot be served, as far as its config and header show; where bad ones are
    dropped, it has no entry.
    """
    sizes = {}
    for number, (name, directory) in enumerate(config.lora.items(), 1):
        try:
            sizes[name] = _bytes_of(Path(directory), model)
        except CheckpointError:
            if not config.drop_bad_adapters:
                raise
        on_progress(number, len(config.lora))
    return sizes


def _bytes_of(directory: Path, model: ModelConfig) -> int:
    return sum(term.memory_bytes for term in read_adapter_tensors(directory, read_adapter_config(directory), model))


def check_adapters_fit(num_bytes: int, free_bytes: int) -> None:
    """Raise EngineConfigError if the adapters are too large. `free_bytes`: what the weights leave free."""
    if num_bytes > free_bytes:
        needed, free = format_bytes(num_bytes), format_bytes(max(0, free_bytes))
        raise EngineConfigError(f"the LoRA adapters take {needed}, and {free} are free after the weights")


def bytes_for_adapters(config: EngineConfig, model: ModelConfig, limits: EngineLimits, free_bytes: int) -> int:
    """Return the bytes of adapters that may be loaded while the engine runs. `free_bytes`: what weights, and adapters
    that are loaded at the start, leave free.

    Pages of the KV cache that were never written count as free, but are promised: with more adapters than this an
    engine that is started again after a crash would not find the memory for its KV cache.
    """
    pool_bytes = (limits.num_blocks + 1) * kv_block_bytes(config, model)
    return max(0, free_bytes - pool_bytes - config.min_server_bytes)


def check_adapters_are_computed(config: EngineConfig, device: str) -> None:
    """Raise EngineConfigError if adapters are configured, and an engine on this type of device computes none."""
    if config.lora and (reason := why_no_adapters(config, device)):
        raise EngineConfigError(f"--lora: {reason}")


def why_no_adapters(config: EngineConfig, device: str) -> str:
    """Return why an engine on this type of device ("cpu", "cuda") computes no adapters; empty if it does."""
    if device != "cpu":
        return "adapters are not computed on a GPU; with --device cpu they are"
    if config.tensor_parallel_size > 1:
        return "adapters are not divided among ranks; drop --tensor-parallel-size"
    return ""
