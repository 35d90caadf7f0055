"""Plan the memory of the weights before any is read."""

from collections.abc import Mapping

import msgspec
import torch

from engine.capacity.packs import are_weights_evictable
from engine.capacity.sizing import check_weights_fit, weight_kind
from engine.capacity.smaller_plans import ways_out
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.startup.backend import Backend
from engine.startup.device_memory import memory_of
from model.checkpoint.stored_tensor import StoredWeight
from model.checkpoint.weight_sizes import kept_in_blocks, name_of_blocks, weight_bytes_of_ranks
from model.config import ModelConfig


def plan_weights(
    config: EngineConfig,
    model: ModelConfig,
    stored: Mapping[str, StoredWeight],
    backend: Backend,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[int, Backend]:
    """Return the bytes of the weights on all ranks of this host, or on this rank's GPU, and the backend named after the
    blocks that stay as stored.

    Raises EngineConfigError if the weights do not fit, unless the system may drop parts of them.
    """
    formats = backend.ops.block_formats
    size, num_kv_heads = config.tensor_parallel_size, model.num_kv_heads
    ranks = config.ranks_of_host if device.type == "cpu" else range(config.rank, config.rank + 1)
    by_part = weight_bytes_of_ranks(stored, dtype.itemsize, config.quantization, formats, size, num_kv_heads, ranks)
    kept, weight_bytes = kept_in_blocks(stored, formats), sum(by_part.values())
    if config.expert_memory is None and not are_weights_evictable(config):
        _check_weights_fit(config, device, weight_bytes, weight_kind(config, model, is_in_blocks=bool(kept)))
    return weight_bytes, backend.with_blocks(name_of_blocks(stored, kept)) if kept else backend


def _check_weights_fit(config: EngineConfig, device: torch.device, weight_bytes: int, kind: str) -> None:
    """Raise EngineConfigError, which names smaller weights that fit, or what else helps."""
    free_bytes = memory_of(device).free_bytes()
    try:
        check_weights_fit(weight_bytes, free_bytes, kind)
    except EngineConfigError as error:
        on_device = msgspec.structs.replace(config, device="cuda" if device.type == "cuda" else "cpu")
        raise EngineConfigError(f"{error}{ways_out(on_device, free_bytes)}") from None
