"""Check of the settings for several ranks. Imports no torch."""

import msgspec

from engine.capacity.machine.host_resources import num_cores
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from model.config import ModelConfig
from model.cut import why_not_divisible

FLAG = "--tensor-parallel-size"


def check_ranks(config: EngineConfig, model: ModelConfig) -> None:
    """Raise EngineConfigError if this network cannot be computed by so many ranks."""
    size = config.tensor_parallel_size
    if size % config.nnodes:
        raise EngineConfigError(f"{FLAG} {size}: {config.nnodes} hosts cannot have equally many ranks")
    if size == 1:
        return
    if reason := why_not_divisible(model, size):
        raise EngineConfigError(f"{FLAG} {size}: the model {reason}")


def check_gpus(config: EngineConfig, num_gpus: int) -> None:
    """Raise EngineConfigError if this host, which has `num_gpus`, has none for one of its ranks."""
    first, last = config.first_gpu, config.first_gpu + config.ranks_per_host - 1
    if last < num_gpus:
        return
    needed = f"GPU {last}" if first == last else f"GPUs {first} to {last}"
    found = f"{num_gpus} {'is' if num_gpus == 1 else 'are'} visible here"
    flag = f"{FLAG} {config.tensor_parallel_size}" if config.tensor_parallel_size > 1 else f"--first-gpu {first}"
    raise EngineConfigError(f"{flag} needs {needed}, and {found}; --device cpu works")


def num_memories(config: EngineConfig, device: str) -> int:
    """Return how many memories hold the model, each with an equal part of the KV cache: GPUs, or hosts."""
    return config.tensor_parallel_size if device == "cuda" else config.nnodes


def with_rank_threads(config: EngineConfig) -> EngineConfig:
    """Return the config with the threads of each rank, if there are several: an equal share of the host's cores."""
    if config.tensor_parallel_size == 1 or config.threads is not None:
        return config
    return msgspec.structs.replace(config, threads=max(1, num_cores() // config.ranks_per_host))


def rank_warnings(config: EngineConfig, device: str) -> list[str]:
    """Return a line if a CPU has more threads than cores. Threads wait for each other in each matrix and ranks several
    times a layer, so that one without a core keeps all others waiting."""
    size, threads, cores = config.ranks_per_host, with_rank_threads(config).threads, num_cores()
    if threads is None or size * threads <= cores or device != "cpu":
        return []
    if size == 1:
        return [f"--threads {threads} on {cores} cores: steps are much slower than with --threads {cores}"]
    return [f"{size} ranks of {threads} threads share {cores} cores: steps are much slower than with a core for each"]
