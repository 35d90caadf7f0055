"""Formats of the KV cache: float32, bfloat16, or int8 with a scale per position and KV head. Imports no torch.

A cache is [num_blocks, block_size, G, elements of a row]. Layouts of the bytes of a block:
rows: as this shape says;
split: all numbers, then all scales (model/ops/triton/kv_blocks.py);
tiles: 16 positions of a KV head together, in the order of model/native/attention/kv_tile.h.
"""

from typing import Literal, TypeAlias

KvDtype: TypeAlias = Literal["float32", "bfloat16", "int8"]
KvLayout: TypeAlias = Literal["rows", "split", "tiles"]

TILE = 16  # positions
SCALE_BYTES = 4  # a float32 scale behind the numbers of each int8 row
NUMBER_BYTES: dict[KvDtype, int] = {"float32": 4, "bfloat16": 2, "int8": 1}


def row_elements(dtype: KvDtype, head_dim: int) -> int:
    """Return the elements of one row (one KV head at one position): K numbers, and 4 bytes of scale for int8."""
    return head_dim + (SCALE_BYTES if dtype == "int8" else 0)


def row_bytes(dtype: KvDtype, head_dim: int) -> int:
    """Return the bytes of one row. A head of 128 numbers takes 512, 256 or 132."""
    return row_elements(dtype, head_dim) * NUMBER_BYTES[dtype]
