"""Memory of a device: what a step uses, what is left for the KV pool, and the error if it is not enough."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from engine.capacity.machine.host_resources import available_bytes, format_bytes
from engine.capacity.sizing import SHARE_OF_FREE_MEMORY
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.out_of_memory import is_out_of_memory


class DeviceMemory(Protocol):
    """Memory shared by weights, KV pool and steps."""

    pool_share: float  # of bytes_left_after() that the KV pool may use

    def free_bytes(self) -> int:
        """Bytes that can still be allocated."""

    def bytes_left_after(self, largest_steps: Callable[[], None]) -> int:
        """Bytes that can be allocated permanently beside steps of this size."""

    def bytes_kept_by(self, build: Callable[[], object]) -> int:
        """Bytes that the result of `build` keeps allocated. The result is dropped."""


class HostMemory:
    """Memory of the host. Steps use the half of it that the KV pool leaves free."""

    pool_share = SHARE_OF_FREE_MEMORY

    def free_bytes(self) -> int:
        return available_bytes()

    def bytes_left_after(self, largest_steps: Callable[[], None]) -> int:
        return self.free_bytes()

    def bytes_kept_by(self, build: Callable[[], object]) -> int:
        return 0  # only CUDA graphs are planned for


class CudaMemory:
    """Memory of a CUDA device, as counted by torch's allocator and the driver."""

    pool_share = 0.95  # the rest is for fragmentation of the allocator

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free_bytes(self) -> int:
        """Bytes that can still be allocated, after torch has freed its unused cache."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]

    def bytes_left_after(self, largest_steps: Callable[[], None]) -> int:
        """Run the steps twice, because the first run also loads kernels, and subtract the peak of the second."""
        largest_steps()
        torch.cuda.synchronize(self._device)
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        largest_steps()
        torch.cuda.synchronize(self._device)
        peak = torch.cuda.max_memory_allocated(self._device) - before
        return max(0, self.free_bytes() - peak)

    def bytes_kept_by(self, build: Callable[[], object]) -> int:
        """Compare the free memory before `build` with that while its result exists: graphs use the driver's memory,
        which torch does not count."""
        before = self.free_bytes()
        kept = build()
        torch.cuda.synchronize(self._device)
        after = self.free_bytes()
        del kept
        return max(0, before - after)


def memory_of(device: torch.device) -> DeviceMemory:
    return CudaMemory(device) if device.type == "cuda" else HostMemory()


@contextmanager
def explain_out_of_memory(config: EngineConfig, phase: str, memory: DeviceMemory) -> Iterator[None]:
    """Turn a failed allocation into an EngineConfigError that names the flags that lower memory use."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        free = format_bytes(memory.free_bytes())
        raise EngineConfigError(f"out of memory while {phase}, {free} are free: {_remedies(config)}") from error


def _remedies(config: EngineConfig) -> str:
    """Return the flags that lower memory use, in the order of their effect."""
    flags = []
    if config.num_kv_blocks is not None:
        flags.append("--num-kv-blocks sets the KV cache; lower it")
    elif config.kv_cache_memory_bytes is not None:
        flags.append("--kv-cache-memory-bytes sets the KV cache; lower it")
    if config.quantization in ("none", "lossless"):
        flags.append("--quantization int8 takes half of bfloat16's bytes for the weights")
    if config.kv_cache_dtype != "int8":
        flags.append("--kv-cache-dtype int8 halves the KV cache")
    budget = config.max_num_batched_tokens or 2048
    flags.append(f"--max-num-batched-tokens {max(16, budget // 2)} halves the memory of a step")
    flags.append("`smoe plan --memory` shows what fits")
    return "; ".join(flags)
