"""Load the LoRA adapters of the configuration."""

from pathlib import Path

from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.execution.adapters import AdapterStore
from model.adapter_loader import load_adapter
from model.config import ModelConfig


def load_adapters(config: EngineConfig, model: ModelConfig, backend: str) -> AdapterStore:
    """Load all adapters of the configuration. Raises CheckpointError for a bad one, EngineConfigError if this engine
    computes none."""
    if config.lora:
        check_adapters(config, backend)
    return AdapterStore({name: load_adapter(Path(path), model) for name, path in config.lora.items()})


def check_adapters(config: EngineConfig, backend: str) -> None:
    """Raise EngineConfigError if this engine computes no adapters."""
    if backend == "triton":
        raise EngineConfigError("--lora: adapters are not computed on a GPU; with --device cpu they are")
    if config.tensor_parallel_size > 1:
        raise EngineConfigError("--lora: adapters are not divided among ranks; drop --tensor-parallel-size")
