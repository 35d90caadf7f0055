"""Load a network from a pack: check its header, and use the weights where they lie."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint.pack.experts import dense_tensors, expert_tensors
from model.checkpoint.pack.header import WEIGHTS_NAME, PackHeader, checked_header
from model.config import ModelConfig
from model.group import ALONE, Group
from model.mixtral import Mixtral
from model.ops.native.expert_store import Read
from model.ops.native.ops import NativeOps
from model.pack.network import StoredNetwork
from model.pack.rank_part import part_of_rank
from model.pack.stored_experts import with_expert_store
from model.pack.weight_memory import BackgroundReader, WeightMemory, copied_file, copied_part, lock, mapped_file

OnProgress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class PackedModel:
    """A network whose weights are in a pack, or were copied from one."""

    network: Mixtral
    reader: BackgroundReader | None  # reads the mapped weights ahead; to be started when the engine is ready


def load_pack(
    directory: Path,
    config: ModelConfig,
    ops: NativeOps,
    memory: WeightMemory,
    on_progress: OnProgress,
    group: Group = ALONE,
) -> PackedModel:
    """Load the pack in `directory`. The bits are those of the checkpoint that was packed.

    A rank of a `group` uses its part of the panels; the first rank reads the file ahead for all. `memory`: map the
    file, map and lock it, or copy it. Raises CheckpointError for a pack that is damaged, of another version or of
    another network, and MemoryError.
    """
    header, file = checked_header(directory, config), directory / WEIGHTS_NAME
    if memory == "copy":
        content = copied_file(file, header.file_bytes, on_progress)
    else:
        content = mapped_file(file, header.file_bytes)
    if memory == "lock":
        lock([content], file, on_progress)
    weights = StoredNetwork(config, _tensors(header, content), header.matrices, ops.panel_size).weights()
    on_progress(header.file_bytes, header.file_bytes)
    reader = BackgroundReader([content]) if memory == "map" and group.cut.rank == 0 else None
    return PackedModel(Mixtral(config, part_of_rank(weights, config, group.cut), ops, group), reader)


def load_pack_in_part(
    directory: Path,
    config: ModelConfig,
    ops: NativeOps,
    memory: WeightMemory,
    num_slots: int,
    on_progress: OnProgress,
    read: Read | None = None,
    *,
    in_page_cache: bool = False,
) -> PackedModel:
    """Load the pack in `directory` with `num_slots` of its experts in memory; others are read when a step needs them.

    `memory`: of all other weights. `read` reads experts in place of the file. `in_page_cache`: experts stay in pages of
    the mapped file, which the system may drop, instead of own memory. The bits and errors are those of load_pack(), and
    NativeUnavailableError if no threads can be started.
    """
    header, file = checked_header(directory, config), directory / WEIGHTS_NAME
    experts = expert_tensors(header)
    dense = dense_tensors(header, experts)
    content = mapped_file(file, header.file_bytes)
    tensors = _tensors(header, content)
    parts = [tensors[tensor.name] for tensor in dense]
    if memory == "lock":
        lock(parts, file, on_progress)
    elif memory == "copy":
        tensors |= {tensor.name: copied_part(part) for tensor, part in zip(dense, parts, strict=True)}
    weights = StoredNetwork(config, tensors, header.matrices, ops.panel_size).weights()
    weights = with_expert_store(weights, experts, content, file, ops, num_slots, read, in_page_cache=in_page_cache)
    num_bytes = sum(tensor.num_bytes for tensor in dense)
    on_progress(num_bytes, num_bytes)
    return PackedModel(Mixtral(config, weights, ops), BackgroundReader(parts) if memory == "map" else None)


def _tensors(header: PackHeader, content: Tensor) -> dict[str, Tensor]:
    return {
        tensor.name: content[tensor.start : tensor.start + tensor.num_bytes]
        .view(getattr(torch, tensor.dtype))
        .view(tensor.shape)
        for tensor in header.tensors.values()
    }
