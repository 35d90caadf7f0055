"""Memory of the paged KV cache. The engine decides which sequence owns a block."""

from math import prod

import torch
from torch import Tensor

from model.config import ModelConfig
from model.kv_format import SCALE_BYTES, TILE, KvDtype, KvLayout, row_elements
from model.ops.huge_pages import zeros

DTYPES: dict[KvDtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


class KvPool:
    """K and V of every layer for `num_blocks` blocks of `block_size` positions, the null block 0 included.

    `k[layer]` and `v[layer]` are [num_blocks, block_size, G, K], or [.., K + 4] in int8: G KV heads of K numbers, in
    the row format of model/kv_format.py and, within a block, in the layout of the backend that writes and reads them
    (Ops.kv_layout). All blocks start as zeros.
    On a CPU a block takes resident memory only after its first write (in units of huge pages). The constructor raises
    MemoryError or torch.OutOfMemoryError if there is not enough memory.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: KvDtype,
        device: torch.device,
        layout: KvLayout = "rows",
    ) -> None:
        """`layout` matters to zero_slots() only."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._layout = layout
        row = row_elements(dtype, config.head_dim)
        shape = (config.num_layers, num_blocks, block_size, config.num_kv_heads, row)
        self.k = _zeros(shape, DTYPES[dtype], device)
        self.v = _zeros(shape, DTYPES[dtype], device)

    def populate(self) -> None:
        """Write all blocks, so that the whole pool takes memory now and none while requests run."""
        self.k.zero_()
        self.v.zero_()

    def zero_blocks(self, block_ids: Tensor) -> None:
        """Fill these blocks, int64 on the pool's device, with zeros in every layer."""
        self.k.index_fill_(1, block_ids, 0)
        self.v.index_fill_(1, block_ids, 0)

    def zero_slots(self, slots: Tensor) -> None:
        """Fill these slots, block_id * block_size + offset, int64 on the pool's device, with zeros in every layer."""
        if self._layout == "tiles":
            _zero_in_tiles(self.k, self.v, slots)
            return
        for cache in (self.k, self.v):
            _zero_split(cache, slots) if self._layout == "split" else cache.flatten(1, 2).index_fill_(1, slots, 0)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return zeros(prod(shape), dtype).view(shape)


def _scale_elements(cache: Tensor) -> int:
    return SCALE_BYTES if cache.dtype == torch.int8 else 0


def _zero_split(cache: Tensor, slots: Tensor) -> None:
    _, _, block_size, num_kv_heads, row = cache.shape
    count = block_size * num_kv_heads * (row - _scale_elements(cache))
    blocks = cache.flatten(2)  # [L, num_blocks, elements of a block]
    for part in (blocks[..., :count], blocks[..., count:]):
        part.view(*part.shape[:2], block_size, -1)[:, slots // block_size, slots % block_size] = 0


def _zero_in_tiles(k: Tensor, v: Tensor, slots: Tensor) -> None:
    layers, num_blocks, block_size, num_kv_heads, row = k.shape
    shape = layers, num_blocks * block_size // TILE, num_kv_heads
    head_dim = row - _scale_elements(k)
    tile, place = slots // TILE, slots % TILE
    keys, values = (cache.view(*shape, TILE * row) for cache in (k, v))
    numbers = slice(TILE * head_dim)
    keys[..., numbers].view(*shape, head_dim // 2, TILE, 2)[:, tile, :, :, place] = 0
    values[..., numbers].view(*shape, TILE // 2, head_dim, 2)[:, tile, :, place // 2, :, place % 2] = 0
    if k.dtype == torch.int8:
        for scales in (keys[..., TILE * head_dim :], values[..., TILE * head_dim :]):
            scales.view(*shape, TILE, SCALE_BYTES)[:, tile, :, place] = 0
