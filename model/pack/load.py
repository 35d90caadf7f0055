"""Load a network from a pack: check its header, and use the weights where they lie."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint.pack.header import WEIGHTS_NAME, PackHeader, checked_header
from model.config import ModelConfig
from model.group import ALONE, Group
from model.mixtral import Mixtral
from model.ops.native.ops import NativeOps
from model.pack.network import StoredNetwork
from model.pack.rank_part import part_of_rank
from model.pack.weight_memory import BackgroundReader, WeightMemory, copied_file, lock, mapped_file


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
    on_progress: Callable[[int, int], None],
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
        lock(content, file, on_progress)
    network = StoredNetwork(config, _tensors(header, content), header.matrices, ops.panel_size)
    on_progress(header.file_bytes, header.file_bytes)
    reader = BackgroundReader(content) if memory == "map" and group.cut.rank == 0 else None
    return PackedModel(Mixtral(config, part_of_rank(network.weights(), config, group.cut), ops, group), reader)


def _tensors(header: PackHeader, content: Tensor) -> dict[str, Tensor]:
    return {
        tensor.name: content[tensor.start : tensor.start + tensor.num_bytes]
        .view(getattr(torch, tensor.dtype))
        .view(tensor.shape)
        for tensor in header.tensors.values()
    }
