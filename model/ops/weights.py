"""Weights as they arrive at a backend: tensors, or blocks as files hold them, whole or slice by slice.

Shape letters: model/ops/interface.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from model.cut import PANEL

# Block format -> numbers and bytes of a block: types of GGUF files (llama.cpp, ggml-common.h), and groups with zero
# points (INT4, INT8) or minima (AFFINE4, AFFINE8; model/native/gemm/block_formats.h). The order is that of the native
# library's codes.
BLOCK_SIZES = {
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "INT4_G32": (32, 21),
    "INT4_G64": (64, 37),
    "INT4_G128": (128, 69),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "INT8_G32": (32, 38),
    "INT8_G64": (64, 70),
    "INT8_G128": (128, 134),
    "AFFINE4_G32": (32, 24),
    "AFFINE4_G64": (64, 40),
    "AFFINE4_G128": (128, 72),
    "AFFINE8_G32": (32, 40),
    "AFFINE8_G64": (64, 72),
    "AFFINE8_G128": (128, 136),
    "IQ3_S": (256, 110),
    "IQ3_XXS": (256, 98),
    "IQ2_S": (256, 82),
    "IQ2_XS": (256, 74),
    "IQ2_XXS": (256, 66),
}
SLICE_ROWS = PANEL  # rows are packed by as many


@dataclass(frozen=True)
class BlockMatrix:
    """A matrix [O, D] in the bytes of a file: its rows are blocks of `format`, a key of BLOCK_SIZES."""

    format: str
    blocks: Tensor  # [O, bytes of a row] uint8
    order: Tensor | None = None  # [D] int32, of groups: number i of a row is multiplied by x[order[i]]; None: by x[i]

    @property
    def shape(self) -> tuple[int, int]:
        """Return (O, D)."""
        numbers, size = BLOCK_SIZES[self.format]
        return len(self.blocks), self.blocks.shape[1] // size * numbers

    def slices(self) -> Iterator[Tensor]:
        """Yield all rows at once."""
        yield self.blocks.contiguous()


@dataclass(frozen=True)
class BlockStream:
    """A matrix [O, D] of `format`, as BlockMatrix, that is read while it is packed; only once."""

    format: str
    shape: tuple[int, int]  # (O, D)
    rows: Iterator[Tensor]  # [rows, bytes of a row] uint8, a multiple of SLICE_ROWS but the last; valid until the next
    order: Tensor | None = None  # as BlockMatrix.order

    def slices(self) -> Iterator[Tensor]:
        """Yield the rows in order, some at a time."""
        return self.rows


@dataclass(frozen=True)
class TensorStream:
    """A matrix [O, D] of `dtype` that is read while it is packed; only once."""

    dtype: torch.dtype
    shape: tuple[int, int]  # (O, D)
    rows: Iterator[Tensor]  # [rows, D], a multiple of SLICE_ROWS but the last; valid until the next

    def slices(self) -> Iterator[Tensor]:
        """Yield the rows in order, some at a time."""
        return self.rows


def groups_with_zeros(codes: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> BlockMatrix:
    """Build a matrix whose weights are scale * (code - zero), with a scale and a zero per output and group.

    codes [O, D] uint8 of 4 or 8 `bits`; scales and zeros [O, groups] of any type, zeros whole numbers up to 255 or 256.
    Groups have 32, 64 or 128 inputs.
    """
    return _in_groups(f"INT{bits}", codes, scales, zeros.to(torch.uint8 if bits == 4 else torch.int16), bits)


def groups_with_minima(codes: Tensor, scales: Tensor, minima: Tensor, bits: int) -> BlockMatrix:
    """Build a matrix whose weights are scale * code + minimum: arguments as of groups_with_zeros."""
    return _in_groups(f"AFFINE{bits}", codes, scales, minima.float(), bits)


def _in_groups(name: str, codes: Tensor, scales: Tensor, rest: Tensor, bits: int) -> BlockMatrix:
    """Build blocks of a scale, `rest` [O, groups] and codes each."""
    (num_outputs, num_inputs), num_groups = codes.shape, scales.shape[1]
    size = num_inputs // num_groups
    numbers = codes.view(num_outputs, num_groups, size)
    if bits == 4:
        numbers = numbers[..., : size // 2] | numbers[..., size // 2 :] << 4
    per_group = (part.unsqueeze(-1).contiguous().view(torch.uint8) for part in (scales.float(), rest))
    return BlockMatrix(f"{name}_G{size}", torch.cat((*per_group, numbers), dim=-1).flatten(1))


Weight: TypeAlias = Tensor | TensorStream | BlockMatrix | BlockStream  # [O, D]


def stacked(weights: Sequence[Weight]) -> Tensor:
    """Join weights [O, D] of a backend that takes only tensors, one below the other."""
    tensors = [as_tensor(weight) for weight in weights]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def as_tensor(weight: Weight) -> Tensor:
    """Return the weight of a backend that takes only tensors: no `block_formats`, no `packs_streams`."""
    assert isinstance(weight, Tensor)
    return weight
