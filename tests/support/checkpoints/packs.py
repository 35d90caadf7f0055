"""Packs made in this process."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.startup.packing import pack
from model.checkpoint.pack.header import PackHeader, network_sizes
from model.checkpoint.stored_tensor import StoredTensor
from model.checkpoint.tensor_names import expected_shapes
from model.config import ModelConfig
from model.mixtral import MixtralWeights
from model.pack.network import NetworkTensors
from model.pack.writer import TensorWriter, finish, new_pack


def make_pack(source: Path, target: Path, **settings: Any) -> Path:
    """Pack a checkpoint; return the folder."""
    pack(EngineConfig(model=str(source), **({"threads": 1} | settings)), target, lambda phase, done, total: None)
    return target


def write_pack(
    weights: MixtralWeights,
    config: ModelConfig,
    target: Path,
    quantization: str = "none",
    add_files: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write packed weights; return the folder. `add_files` writes what lies beside them."""
    with new_pack(target) as (folder, stream):
        add_files(folder)
        writer = TensorWriter(stream, config)
        parts = NetworkTensors(writer.write)
        parts.tensor("embedding", weights.embedding)
        for index, layer in enumerate(weights.layers):
            parts.layer(index, layer)
        parts.tensor("norm", weights.norm)
        parts.linear("head", weights.head)
        shapes = expected_shapes(config, fused=False)
        header = PackHeader(
            source="random",
            contents="0" * 64,
            quantization=quantization,
            dtype="bfloat16",
            network=network_sizes(config),
            stored=tuple(
                StoredTensor(Path(), name, "BF16", shape, 0, 2 * prod(shape)) for name, shape in shapes.items()
            ),
            tensors=writer.tensors,
            matrices=parts.matrices,
            file_bytes=writer.file_bytes,
        )
        finish(stream, header, folder)
    return target


def flip_byte(file: Path, position: int) -> None:
    """Change one byte of a file in place."""
    with file.open("r+b") as stream:
        stream.seek(position)
        [value] = stream.read(1)
        stream.seek(position)
        stream.write(bytes([value ^ 1]))
