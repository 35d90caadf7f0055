"""Read a checkpoint's config and the places of its weights, whatever its layout. Imports no torch.

Layouts: a directory in Hugging Face's layout, quantized or not, or in Mistral's own; a GGUF file; a pack, which has a
config in Hugging Face's layout.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from model.checkpoint.config_file import load_config, read_encoding, with_experts_per_token
from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf.config import gguf_config
from model.checkpoint.gguf.split_files import read_model
from model.checkpoint.gguf.tensors import gguf_tensors
from model.checkpoint.mistral_layout import is_mistral_layout, mistral_config, mistral_tensors
from model.checkpoint.pack.header import checked_header, is_pack
from model.checkpoint.quantized.matrices import quantized_weights
from model.checkpoint.stored_tensor import StoredWeight
from model.checkpoint.tensor_names import checked_tensors
from model.config import ModelConfig


def read_config(
    path: Path,
    sliding_window: Literal["model", "none"] | int = "model",
    experts_per_token: int | None = None,
    rope_theta: float | None = None,
) -> tuple[ModelConfig, list[str]]:
    """Read the config of the checkpoint `path`, a directory or a GGUF file; return it with warnings of one line each.

    `sliding_window` (unless "model"), `experts_per_token` and `rope_theta` override the checkpoint's values. Raises
    CheckpointError for missing or invalid values, and for features that the network does not implement.
    """
    if is_file(path):
        config, warnings = gguf_config(read_model(path), sliding_window, rope_theta)
    elif is_mistral_layout(path):
        config, warnings = mistral_config(path, sliding_window, rope_theta)
    else:
        return load_config(path, sliding_window, experts_per_token, rope_theta)
    return with_experts_per_token(config, experts_per_token), warnings


def read_stored_weights(path: Path, config: ModelConfig) -> Mapping[str, StoredWeight]:
    """Read all headers of the checkpoint `path`; return its weights by their names in Hugging Face's layouts.

    Raises CheckpointError unless names, shapes and types are exactly those that the config implies.
    """
    if is_file(path):
        return gguf_tensors(read_model(path), config)
    if is_pack(path):
        return {weight.name: weight for weight in checked_header(path, config).stored}
    if is_mistral_layout(path):
        return mistral_tensors(path, config)
    encoding = read_encoding(path)
    return checked_tensors(path, config) if encoding is None else quantized_weights(path, config, encoding)


def is_file(path: Path) -> bool:
    """Return whether the checkpoint is a file, not a directory. Raises CheckpointError if the disk cannot tell."""
    try:
        return path.is_file()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
