"""Addresses of keys and values in the paged cache.

A block holds block_size positions of G KV heads, K numbers each. In int8 the pool has K + 4 bytes a row
(model/kv_format.py); this backend keeps a block's numbers together and its float32 scales behind them, so that every
row of numbers is aligned. Example: block_size 16, G 8, K 128: the first 16,384 of a block's 16,896 bytes are numbers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# mypy: disable-error-code="untyped-decorator"


@triton.jit
def number_offsets(
    block: tl.tensor,
    offset: tl.tensor,
    kv_head: tl.tensor,
    num_kv_heads: tl.tensor,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROW: tl.constexpr,
) -> tl.tensor:
    """Return the offsets of a row's first number, in elements of the cache. ROW: elements of a pool row."""
    return block * (BLOCK_SIZE * ROW) * num_kv_heads + (offset * num_kv_heads + kv_head) * HEAD_DIM


@triton.jit
def scale_offsets(
    block: tl.tensor,
    offset: tl.tensor,
    kv_head: tl.tensor,
    num_kv_heads: tl.tensor,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROW: tl.constexpr,
) -> tl.tensor:
    """Return the offsets of the scales of int8 rows, in float32 elements of the cache."""
    block_start = block * (BLOCK_SIZE * ROW // 4) * num_kv_heads
    return block_start + num_kv_heads * (BLOCK_SIZE * HEAD_DIM // 4) + offset * num_kv_heads + kv_head


def with_scales(k_cache: Tensor, v_cache: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return K, V, and views of both as float32, for the scales of int8 rows; other dtypes have no scales to read."""
    if k_cache.dtype != torch.int8:
        return k_cache, v_cache, k_cache, v_cache
    return k_cache, v_cache, k_cache.view(torch.float32), v_cache.view(torch.float32)
