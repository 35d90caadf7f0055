"""Memory of a pack whose experts are read from the disk when they are needed (--expert-memory). No torch."""

from dataclasses import dataclass
from pathlib import Path

from engine.capacity.adapters import check_adapters_fit
from engine.capacity.machine.host_resources import format_bytes
from engine.capacity.sizing import MAX_CPU_BUDGET, bytes_beside_evictable, kv_block_bytes
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.speculation.speculator import max_rows
from model.checkpoint.pack.experts import dense_tensors, expert_tensors
from model.checkpoint.pack.header import PackHeader, checked_header
from model.config import ModelConfig

FLAG = "--expert-memory"
MIN_SLOTS = 2  # one is computed while the other is read
PARTS_OF_FREE = 8  # one of so many is left for KV cache, steps and requests if the KV cache has no set size
PARTS_UNPLANNED = 64  # else one of so many is left beside what is planned
PARTS_BESIDE_CACHED = 32  # one of so many is left for processes and requests beside pages that the system may drop


@dataclass(frozen=True)
class ExpertMemory:
    """Slots for experts, and the weights beside them."""

    num_slots: int
    slot_bytes: int  # of the largest expert
    num_experts: int  # of all layers
    dense_bytes: int  # of all other weights
    in_page_cache: bool = False  # slots are pages of the mapped pack, which the system may drop

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


def plan_expert_memory(
    config: EngineConfig, model: ModelConfig, free_bytes: int, adapter_bytes: int = 0
) -> ExpertMemory | None:
    """Return the memory of the experts, of `free_bytes` for everything; None without config.expert_memory.

    auto: what adapters, _bytes_beside() and the other weights leave, up to all experts. Raises EngineConfigError if it
    is too little, and CheckpointError for a damaged pack.
    """
    if config.expert_memory is None:
        return None
    check_adapters_fit(adapter_bytes, free_bytes)
    free_bytes -= adapter_bytes
    num_experts, slot_bytes, dense_bytes = _sizes(config, model)
    least = max(MIN_SLOTS, model.experts_per_token)
    wanted = config.expert_memory
    if wanted == "auto":
        wanted = free_bytes - dense_bytes - _bytes_beside(config, model, free_bytes)
    num_slots = min(wanted // slot_bytes, num_experts)
    if num_slots < least:
        need, left = format_bytes(least * slot_bytes), format_bytes(max(0, wanted))
        problem = f"auto: {left} are left for experts" if config.expert_memory == "auto" else f"{left} is too small"
        raise EngineConfigError(f"{FLAG} {problem}: {least} experts of this pack take {need}")
    planned = ExpertMemory(num_slots, slot_bytes, num_experts, dense_bytes)
    if planned.num_bytes + dense_bytes > free_bytes:
        both, free = format_bytes(planned.num_bytes + dense_bytes), format_bytes(free_bytes)
        raise EngineConfigError(
            f"{FLAG} {format_bytes(wanted)} does not fit: with the other weights {both}, and {free} are free; "
            f"{FLAG} auto takes what fits"
        )
    return planned


def plan_cached_experts(config: EngineConfig, model: ModelConfig, free_bytes: int) -> ExpertMemory | None:
    """Return how many experts of a mapped pack that is larger than `free_bytes` stay in the page cache.

    More than with --expert-memory auto, since the system takes pages back where requests need them. None if all stay
    there, or if the system decides: for several ranks, and where not even the least number fits. By a config of
    settings_of_pack(). Raises CheckpointError.
    """
    is_mapped = config.weights_memory == "map" and config.expert_memory is None and config.tensor_parallel_size == 1
    if not is_mapped or not model.num_experts:
        return None
    num_experts, slot_bytes, dense_bytes = _sizes(config, model)
    kv_bytes = _kv_bytes(config, model)
    if kv_bytes is None:  # half of what bytes_beside_weights() leaves
        kv_bytes = free_bytes // PARTS_OF_FREE // 2
    beside = kv_bytes + _step_bytes(config, model) + free_bytes // PARTS_BESIDE_CACHED
    num_slots = (free_bytes - dense_bytes - beside) // slot_bytes
    if not max(MIN_SLOTS, model.experts_per_token) <= num_slots < num_experts:
        return None
    return ExpertMemory(num_slots, slot_bytes, num_experts, dense_bytes, in_page_cache=True)


def _sizes(config: EngineConfig, model: ModelConfig) -> tuple[int, int, int]:
    """Return the number of experts in a pack, and the bytes of the largest one and of all other weights."""
    header = checked_header(Path(config.model), model)
    experts = expert_tensors(header)
    return experts.count, experts.largest_bytes, sum(t.num_bytes for t in dense_tensors(header, experts))


def _bytes_beside(config: EngineConfig, model: ModelConfig, free_bytes: int) -> int:
    """Return the bytes that experts leave to KV cache, steps and requests.

    With a KV cache of a set size: that, the least memory for requests, the largest step, and a little more. Requests
    get as much of the rest as engine/capacity/memory_share.py finds; the weights come first.
    """
    kv_bytes = _kv_bytes(config, model)
    if kv_bytes is None:
        return max(free_bytes // PARTS_OF_FREE, config.ample_server_bytes)
    return kv_bytes + config.min_server_bytes + _step_bytes(config, model) + free_bytes // PARTS_UNPLANNED


def _kv_bytes(config: EngineConfig, model: ModelConfig) -> int | None:
    """Return the bytes of the KV cache; None if they are not set."""
    if config.num_kv_blocks is not None:
        return (config.num_kv_blocks + 1) * kv_block_bytes(config, model)
    return config.kv_cache_memory_bytes


def _step_bytes(config: EngineConfig, model: ModelConfig) -> int:
    """Return about the bytes of the largest step: hidden rows and outputs of its experts, packed and in float32, and
    the logits of all requests, before and after sampling; and the logits of a step with drafts, which are kept."""
    pairs = (config.max_num_batched_tokens or MAX_CPU_BUDGET) * model.experts_per_token
    num_drafting = max_rows(config.max_num_seqs) if config.speculation == "auto" else 0
    num_logits = (config.max_num_seqs * 2 + num_drafting) * model.vocab_size
    return 4 * (pairs * 2 * (model.hidden_dim + model.dim) + num_logits)


def mapped_bytes_of(config: EngineConfig, weight_bytes: int, experts: ExpertMemory | None) -> int:
    """Return the bytes of the weights that the system may drop and read again, by a config of settings_of_pack()."""
    if config.weights_memory != "map":
        return 0
    return weight_bytes if experts is None or experts.in_page_cache else experts.dense_bytes


def bytes_beside_weights(free_bytes: int, mapped_bytes: int, experts: ExpertMemory | None) -> int:
    """Return the part of `free_bytes`, free when the weights are loaded, for KV cache, steps and requests: mapped pages
    and slots, which are filled when experts are needed, still count as free."""
    if experts is not None and not experts.in_page_cache:
        return free_bytes - mapped_bytes - experts.num_bytes
    return bytes_beside_evictable(free_bytes, mapped_bytes) if mapped_bytes else free_bytes
