"""Weights as they arrive at a backend: tensors, or blocks as files hold them. Shape letters: model/ops/interface.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

# Block format -> numbers and bytes of a block: types of GGUF files (llama.cpp, ggml-common.h), and 4-bit groups with
# zero points (model/native/gemm/block_formats.h). The order is that of the native library's codes.
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


def int4_groups(codes: Tensor, scales: Tensor, zeros: Tensor) -> BlockMatrix:
    """Build a matrix whose weights are scale * (code - zero), with a scale and a zero per output and group.

    codes [O, D] uint8, 0 .. 15; scales [O, groups] float16, bfloat16 or float32; zeros [O, groups] uint8. Groups have
    32, 64 or 128 inputs.
    """
    (num_outputs, num_inputs), num_groups = codes.shape, scales.shape[1]
    size = num_inputs // num_groups
    halves = codes.view(num_outputs, num_groups, 2, size // 2)
    numbers = halves[:, :, 0] | halves[:, :, 1] << 4
    scale_bytes = scales.float().unsqueeze(-1).contiguous().view(torch.uint8)  # [O, groups, 4]
    blocks = torch.cat((scale_bytes, zeros.unsqueeze(-1), numbers), dim=-1)
    return BlockMatrix(f"INT4_G{size}", blocks.flatten(1))


Weight: TypeAlias = Tensor | BlockMatrix  # [O, D]


def stacked(weights: Sequence[Weight]) -> Tensor:
    """Join weights [O, D] of a backend that takes only tensors, one below the other."""
    tensors = [as_tensor(weight) for weight in weights]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def as_tensor(weight: Weight) -> Tensor:
    """Return the weight of a backend that takes only tensors: its `block_formats` are empty."""
    assert isinstance(weight, Tensor)
    return weight
