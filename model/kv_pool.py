"""Memory of the paged KV cache. The engine decides which sequence owns a block."""

from math import prod

import torch
from torch import Tensor

from model.config import ModelConfig
from model.kv_format import KvDtype, row_elements
from model.ops.huge_pages import zeros

DTYPES: dict[KvDtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


class KvPool:
    """K and V of every layer for `num_blocks` blocks of `block_size` positions, the null block 0 included.

    `k[layer]` and `v[layer]` are [num_blocks, block_size, G, K], or [.., K + 4] in int8: G KV heads of K numbers, in
    the row format of model/kv_format.py. All blocks start as zeros.
    On a CPU a block takes resident memory only after its first write (in units of huge pages). The constructor raises
    MemoryError or torch.OutOfMemoryError if there is not enough memory.
    """

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, dtype: KvDtype, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
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
        self.k.flatten(1, 2).index_fill_(1, slots, 0)
        self.v.flatten(1, 2).index_fill_(1, slots, 0)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return zeros(prod(shape), dtype).view(shape)
