"""Weights as they arrive at a backend: tensors, or the blocks of a GGUF file. Shape letters: model/ops/interface.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

# Block format -> numbers and bytes of a block (llama.cpp, ggml-common.h).
BLOCK_SIZES = {
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}


@dataclass(frozen=True)
class BlockMatrix:
    """A matrix [O, D] in the bytes of a file: its rows are blocks of `format`, a key of BLOCK_SIZES."""

    format: str
    blocks: Tensor  # [O, bytes of a row] uint8

    @property
    def shape(self) -> tuple[int, int]:
        """Return (O, D)."""
        numbers, size = BLOCK_SIZES[self.format]
        return len(self.blocks), self.blocks.shape[1] // size * numbers


Weight: TypeAlias = Tensor | BlockMatrix  # [O, D]


def stacked(weights: Sequence[Weight]) -> Tensor:
    """Join weights [O, D] of a backend that takes only tensors, one below the other."""
    tensors = [as_tensor(weight) for weight in weights]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def as_tensor(weight: Weight) -> Tensor:
    """Return the weight of a backend that takes only tensors: its `block_formats` are empty."""
    assert isinstance(weight, Tensor)
    return weight
