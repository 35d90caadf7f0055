"""Describe where a checkpoint's files hold the weights of the network, as plain data. Imports no torch.

Every layout of files is read into this class, named as in Hugging Face's classic layout. model/stored_weights.py
reads the bytes and decodes them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True)
class StoredTensor:
    """Position, type and shape of a tensor, from its file's header. Its bytes are contiguous."""

    file: Path
    name: str
    dtype: str  # safetensors' name ("BF16"), or a block type of GGUF ("Q4_K")
    shape: tuple[int, ...]
    start: int  # byte position in the file
    num_bytes: int
    # Heads whose rows alternate between the two halves of a rotary pair: 0, K/2, 1, K/2 + 1, ... (in GGUF, and in
    # Mistral's own layout). 0: the rows have the network's order.
    interleaved_heads: int = 0


StoredWeight: TypeAlias = StoredTensor
