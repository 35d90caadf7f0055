"""The layout "tiles" of model/kv_format.py, written down as permutations of a cache in rows."""

import torch
from torch import Tensor

TILE = 16


def _permuted(rows: Tensor, scale_elements: int, is_keys: bool) -> Tensor:
    tiles = rows.flatten(0, 1).unflatten(0, (-1, TILE))  # [tiles, TILE, G, row]
    head_dim = rows.shape[-1] - scale_elements
    numbers, scales = tiles[..., :head_dim], tiles[..., head_dim:]
    if is_keys:
        numbers = numbers.unflatten(3, (-1, 2)).permute(0, 2, 3, 1, 4)  # [tiles, G, K/2, TILE, 2]
    else:
        numbers = numbers.unflatten(1, (-1, 2)).permute(0, 3, 1, 4, 2)  # [tiles, G, TILE/2, K, 2]
    return torch.cat((numbers.flatten(2), scales.transpose(1, 2).flatten(2)), dim=-1).view(rows.shape)


def in_tiles(rows: Tensor, is_keys: bool) -> Tensor:
    """Convert a cache [num_blocks, block_size, G, K or K + 4] of keys, or of values, from rows to tiles."""
    return _permuted(rows, 4 if rows.dtype == torch.int8 else 0, is_keys)


def in_rows(tiles: Tensor, is_keys: bool) -> Tensor:
    """Convert a cache back."""
    places = torch.arange(tiles.numel()).view(tiles.shape)
    rows = torch.empty_like(tiles)
    rows.view(-1)[_permuted(places, 4 if tiles.dtype == torch.int8 else 0, is_keys).view(-1)] = tiles.reshape(-1)
    return rows
