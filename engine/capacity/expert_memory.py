"""Memory of a pack whose experts are read from the disk when they are needed (--expert-memory). No torch."""

from dataclasses import dataclass
from pathlib import Path

from engine.capacity.host_resources import format_bytes
from engine.capacity.sizing import bytes_beside_evictable, kv_block_bytes
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from model.checkpoint.pack.experts import dense_tensors, expert_tensors
from model.checkpoint.pack.header import PackHeader, read_header
from model.config import ModelConfig

FLAG = "--expert-memory"
MIN_SLOTS = 2  # one is computed while the other is read
PARTS_OF_FREE = 8  # at least one of so many is left for KV cache, steps and requests


@dataclass(frozen=True)
class ExpertMemory:
    """Slots for experts, and the weights beside them."""

    num_slots: int
    slot_bytes: int  # of the largest expert
    num_experts: int  # of all layers
    dense_bytes: int  # of all other weights

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots."""
        return self.num_slots * self.slot_bytes

    @property
    def num_missing(self) -> int:
        """Experts that do not fit."""
        return self.num_experts - self.num_slots


def check_expert_memory(config: EngineConfig, header: PackHeader | None) -> None:
    """Raise EngineConfigError if the model, a pack or not (None), cannot be served with config.expert_memory."""
    if config.expert_memory is None:
        return
    if header is None:
        raise EngineConfigError(f"{FLAG} needs a pack; make one with: smoe pack {config.model} -o DIR")
    if not header.network["num_experts"]:
        raise EngineConfigError(f"{FLAG}: this model has no experts; leave the flag out")
    if config.tensor_parallel_size > 1:
        size = config.tensor_parallel_size
        raise EngineConfigError(f"{FLAG}: experts are read by one rank, not by --tensor-parallel-size {size}")


def plan_expert_memory(config: EngineConfig, model: ModelConfig, free_bytes: int) -> ExpertMemory | None:
    """Return the memory of the experts, of `free_bytes` for everything; None without config.expert_memory.

    auto: what is left beside the other weights, the KV cache and requests, up to all experts. Raises EngineConfigError
    if it is too little, and CheckpointError for a damaged pack.
    """
    if config.expert_memory is None:
        return None
    header = read_header(Path(config.model))
    experts = expert_tensors(header)
    dense_bytes = sum(tensor.num_bytes for tensor in dense_tensors(header, experts))
    slot_bytes, least = experts.largest_bytes, max(MIN_SLOTS, model.experts_per_token)
    wanted = config.expert_memory
    if wanted == "auto":
        wanted = free_bytes - dense_bytes - _bytes_beside(config, model, free_bytes)
    num_slots = min(wanted // slot_bytes, experts.count)
    if num_slots < least:
        need, left = format_bytes(least * slot_bytes), format_bytes(max(0, wanted))
        problem = f"auto: {left} are left for experts" if config.expert_memory == "auto" else f"{left} is too small"
        raise EngineConfigError(f"{FLAG} {problem}: {least} experts of this pack take {need}")
    planned = ExpertMemory(num_slots, slot_bytes, experts.count, dense_bytes)
    if planned.num_bytes + dense_bytes > free_bytes:
        both, free = format_bytes(planned.num_bytes + dense_bytes), format_bytes(free_bytes)
        raise EngineConfigError(
            f"{FLAG} {format_bytes(wanted)} does not fit: with the other weights {both}, and {free} are free; "
            f"{FLAG} auto takes what fits"
        )
    return planned


def _bytes_beside(config: EngineConfig, model: ModelConfig, free_bytes: int) -> int:
    """Return the bytes that experts leave to KV cache, steps and requests."""
    kv_bytes = config.kv_cache_memory_bytes or 0
    if config.num_kv_blocks is not None:
        kv_bytes = (config.num_kv_blocks + 1) * kv_block_bytes(config, model)
    return max(free_bytes // PARTS_OF_FREE, kv_bytes + config.ample_server_bytes)


def mapped_bytes_of(config: EngineConfig, weight_bytes: int, experts: ExpertMemory | None) -> int:
    """Return the bytes of the weights that the system may drop and read again, by a config of settings_of_pack()."""
    if config.weights_memory != "map":
        return 0
    return weight_bytes if experts is None else experts.dense_bytes


def bytes_beside_weights(free_bytes: int, mapped_bytes: int, experts: ExpertMemory | None) -> int:
    """Return the part of `free_bytes`, free when the weights are loaded, for KV cache, steps and requests: mapped pages
    and slots, which are filled when experts are needed, still count as free."""
    if experts is not None:
        return free_bytes - mapped_bytes - experts.num_bytes
    return bytes_beside_evictable(free_bytes, mapped_bytes) if mapped_bytes else free_bytes
