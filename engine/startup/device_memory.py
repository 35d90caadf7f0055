"""The memory of a card: what a step takes of it, what is left for the KV pool, and what to say where it does not do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from engine.capacity.host_resources import available_bytes, format_bytes
from engine.capacity.sizing import SHARE_OF_FREE_MEMORY
from engine.config import EngineConfig
from engine.errors import EngineConfigError


class DeviceMemory(Protocol):
    """The memory that weights, KV pool and steps share."""

    share_of_pool: float  # of bytes_left_after() that the KV pool may take

    def free_bytes(self) -> int:
        """What may still be allocated."""

    def bytes_left_after(self, largest_step: Callable[[], None]) -> int:
        """What may be allocated for good beside steps of this size."""


class HostMemory:
    """The machine's own. What a step needs comes out of the half of it that the KV pool leaves alone."""

    share_of_pool = SHARE_OF_FREE_MEMORY

    def free_bytes(self) -> int:
        return available_bytes()

    def bytes_left_after(self, largest_step: Callable[[], None]) -> int:
        return self.free_bytes()


class CudaMemory:
    """A CUDA device's, as torch's allocator and the driver count it."""

    share_of_pool = 0.95  # the rest is for the allocator's fragments and for graphs

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free_bytes(self) -> int:
        """What torch holds and does not use is given back first."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]

    def bytes_left_after(self, largest_step: Callable[[], None]) -> int:
        """Runs the step twice, as the first also loads kernels, and takes the peak of the second."""
        largest_step()
        torch.cuda.synchronize(self._device)
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        largest_step()
        torch.cuda.synchronize(self._device)
        peak = torch.cuda.max_memory_allocated(self._device) - before
        return max(0, self.free_bytes() - peak)


def memory_of(device: torch.device) -> DeviceMemory:
    return CudaMemory(device) if device.type == "cuda" else HostMemory()


@contextmanager
def explained(config: EngineConfig, phase: str, memory: DeviceMemory) -> Iterator[None]:
    """Turns an allocation that fails into an EngineConfigError with the flags that ask for less."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        free = format_bytes(memory.free_bytes())
        raise EngineConfigError(f"out of memory while {phase}, {free} are free: {_ways_out(config)}") from error


def _ways_out(config: EngineConfig) -> str:
    """In the order of how much they free."""
    flags = []
    if config.num_kv_blocks is not None:
        flags.append("--num-kv-blocks asks for the KV cache")
    elif config.kv_cache_memory_bytes is not None:
        flags.append("--kv-cache-memory-bytes asks for the KV cache")
    if config.quantization == "none":
        flags.append("--quantization int8 halves the weights of bfloat16")
    if config.kv_cache_dtype != "int8":
        flags.append("--kv-cache-dtype int8 halves the KV cache")
    budget = config.max_num_batched_tokens or 2048
    flags.append(f"--max-num-batched-tokens {max(16, budget // 2)} halves what a step takes")
    flags.append("`smoe plan --memory` says what fits")
    return "; ".join(flags)
