"""Describe where a checkpoint's files hold the weights of the network, as plain data. Imports no torch.

Every layout of files is read into these two classes, named as in Hugging Face's classic layout. model/stored_weights.py
reads the bytes and decodes them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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


def rows_of(tensor: StoredTensor, rows: range) -> StoredTensor:
    """Return the part of a matrix with these rows; of interleaved heads whole ones."""
    num_rows, *row_shape = tensor.shape
    row_bytes = tensor.num_bytes // num_rows
    return replace(
        tensor,
        shape=(len(rows), *row_shape),
        start=tensor.start + rows.start * row_bytes,
        num_bytes=len(rows) * row_bytes,
        interleaved_heads=tensor.interleaved_heads * len(rows) // num_rows,
    )


# Kind of encoding -> block format of its groups: scale * (code - zero), or scale * code + minimum.
GROUPED_KINDS = {"awq": "INT", "gptq": "INT", "compressed-tensors": "INT", "int8": "INT", "mlx": "AFFINE"}
GROUP_SIZES = (128, 64, 32)  # of these block formats


@dataclass(frozen=True)
class PackedEncoding:
    """Encoding of a matrix that several tensors of safetensors files hold together."""

    kind: str  # a key of model/checkpoint/quantized/decoders.py: "awq", "gptq", ...
    bits: int = 8
    group_size: int = 0  # inputs that share a scale; 0: all inputs of an output do
    has_zeros: bool = True  # the file's zero points count; else zero is the middle of the codes
    zero_offset: int = 0  # added to a stored zero point: 1 in GPTQ files of version 1
    is_ordered: bool = True  # each group is a run of inputs (no act-order)
    block_rows: int = 0  # outputs that share a scale, where outputs do too (FP8 in blocks)

    @property
    def code_bits(self) -> int:
        """Bits of a code in the blocks that the kernels multiply: 4 or 8."""
        return 4 if self.bits <= 4 else 8

    def __str__(self) -> str:
        group = f" g{self.group_size}" if self.group_size else ""
        return f"{self.kind} {self.bits}-bit{group}"


@dataclass(frozen=True)
class PackedMatrix:
    """A quantized matrix: codes, scales, zero points and so on, by the name of each part."""

    name: str
    shape: tuple[int, int]  # of the decoded matrix: outputs, inputs
    encoding: PackedEncoding
    parts: Mapping[str, StoredTensor]
    offset: float = 0.0  # added to the scales (bitsandbytes)

    @property
    def file(self) -> Path:
        return next(iter(self.parts.values())).file

    @property
    def dtype(self) -> str:
        """Name of the format: a block format of model/ops/weights.py, or the encoding for messages.

        Larger groups, up to a whole row, become several groups of 128 with the same scale; codes get 4 or 8 bits.
        """
        encoding, size = self.encoding, self.encoding.group_size or self.shape[1]
        fitting = next((numbers for numbers in GROUP_SIZES if size % numbers == 0), 0)
        if encoding.kind in GROUPED_KINDS and fitting:
            return f"{GROUPED_KINDS[encoding.kind]}{encoding.code_bits}_G{fitting}"
        return str(encoding)

    @property
    def has_order(self) -> bool:
        """True if the headers let inputs belong to groups out of order (act-order)."""
        is_ordered = self.encoding.is_ordered and "weight_g_idx" not in self.parts
        return not is_ordered and self.encoding.group_size not in (0, self.shape[1])

    @property
    def has_plain_zeros(self) -> bool:
        """True if zero points are signed bytes, as in older compressed-tensors files; False if they are packed."""
        zeros = self.parts.get("weight_zero_point")
        return zeros is not None and zeros.dtype == "I8"

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts.values())


StoredWeight: TypeAlias = StoredTensor | PackedMatrix


def tensors_of(weights: Iterable[StoredWeight]) -> Iterator[StoredTensor]:
    """Yield the tensors that hold these weights."""
    for weight in weights:
        yield from (weight,) if isinstance(weight, StoredTensor) else weight.parts.values()
