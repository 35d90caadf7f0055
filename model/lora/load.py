"""Load a LoRA adapter that PEFT has saved."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.checkpoint.adapter.config import CONFIG_NAME, read_adapter_config
from model.checkpoint.adapter.tensors import StoredTerm, read_adapter_tensors
from model.checkpoint.errors import CheckpointError
from model.checkpoint.identity import files_digest
from model.checkpoint.stored_tensor import StoredTensor
from model.config import ModelConfig
from model.lora.adapter import NUM_ATTENTION_TERMS, NUM_EXPERT_TERMS, Adapter, LowRank

CHUNK_BYTES = 1 << 20
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # by their names in files

Allocate = Callable[[int, torch.dtype], Tensor]  # number of elements and their type -> uninitialized vector


def _allocate(num_elements: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(num_elements, dtype=dtype)


class TermMemory:
    """One piece of memory for all matrices of an adapter, which lie in it side by side."""

    def __init__(self, num_bytes: int, allocate: Allocate) -> None:
        self._free = allocate(num_bytes, torch.uint8)

    def moved(self, term: LowRank) -> LowRank:
        """Return a term whose matrices are copied behind those before."""
        return replace(term, a=self._copied(term.a), b=self._copied(term.b))

    def _copied(self, matrix: Tensor) -> Tensor:
        copy, self._free = self._free[: matrix.nbytes], self._free[matrix.nbytes :]
        return copy.view(matrix.dtype).view(matrix.shape).copy_(matrix)


def load_adapter(
    directory: Path,
    config: ModelConfig,
    max_bytes: int | None = None,
    allocate: Allocate = _allocate,
    limit: str = "are free",
) -> Adapter:
    """Load the adapter in `directory` for a model of this config: all matrices are read, checked and packed.

    Matrices in bfloat16 stay so; others become float32. All of them lie in one vector of `allocate`, by layers. Raises
    CheckpointError, with one line, for everything that cannot be served, and if the matrices need more than
    `max_bytes`, which `limit` describes; and MemoryError.
    """
    described = read_adapter_config(directory)
    stored = read_adapter_tensors(directory, described, config)
    tensors = [tensor for term in stored for tensor in (term.a, term.b)]
    needed = sum(term.memory_bytes for term in stored)
    if max_bytes is not None and needed > max_bytes:
        raise CheckpointError(f"{directory}: the adapter needs {needed:,} bytes, of which {max_bytes:,} {limit}")
    before = files_digest(tensors)
    digest = _digest([directory / CONFIG_NAME, *sorted({tensor.file for tensor in tensors})])
    num_terms = NUM_ATTENTION_TERMS + NUM_EXPERT_TERMS * max(1, config.num_experts)
    layers: list[list[LowRank | None]] = [[None] * num_terms for _ in range(config.num_layers)]
    memory = TermMemory(needed, allocate)
    for term in sorted(stored, key=lambda term: (term.layer, term.target.index)):
        layers[term.layer][term.target.index] = memory.moved(_load_term(term))
    if files_digest(tensors) != before:
        raise CheckpointError(f"{directory}: files were replaced while they were loaded; load the adapter again")
    return Adapter(digest, tuple(map(tuple, layers)))


def _load_term(term: StoredTerm) -> LowRank:
    a, b = _read(term.a), _read(term.b)
    if a.dtype != b.dtype:
        a, b = a.float(), b.float()
    return LowRank.packed(a, b, term.scale, term.target.first_output)


def _read(tensor: StoredTensor) -> Tensor:
    """Read a tensor into new memory: a file that shrinks meanwhile raises an error instead of a bus fault."""
    try:
        content = np.fromfile(tensor.file, np.uint8, tensor.num_bytes, offset=tensor.start)
    except OSError as error:
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name} cannot be read: {error.strerror}") from None
    if len(content) < tensor.num_bytes:
        raise CheckpointError(f"{tensor.file} ends within tensor {tensor.name}")
    weight = torch.from_numpy(content).view(DTYPES[tensor.dtype]).view(tensor.shape)
    if not weight.isfinite().all():
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name} has NaN or infinite values")
    return weight if weight.dtype == torch.bfloat16 else weight.float()


def _digest(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the files' names and bytes, in hex."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} ".encode())
        try:
            with file.open("rb") as opened:
                while chunk := opened.read(CHUNK_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    return digest.hexdigest()
