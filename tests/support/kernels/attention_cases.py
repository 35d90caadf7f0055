"""Shapes of attention for tests of every backend, and batches of paged attention."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig
from model.kv_pool import DTYPES as KV_DTYPES
from model.ops.interface import Ops
from model.ops.reference.kv_int8 import as_cached
from tests.support.kernels.kv_tiles import in_tiles
from tests.support.kernels.paged import Running, make_batch


@dataclass(frozen=True)
class Heads:
    """Shape of attention."""

    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    window: int | None = None

    @property
    def config(self) -> ModelConfig:
        """Return a config with these heads; its other values do not matter to attention."""
        return ModelConfig(
            architecture="MistralForCausalLM",
            vocab_size=32,
            dim=32,
            num_layers=1,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            hidden_dim=32,
            num_experts=0,
            experts_per_token=0,
            window=self.window,
            context_len=65536,
            rope_theta=1e4,
            norm_eps=1e-5,
            tied_head=False,
            dtype="float32",
            bos_token_id=None,
            eos_token_ids=(),
        )


@dataclass(frozen=True)
class Positions:
    """Queries [length, H, K], keys and values [length, G, K] of one sequence."""

    q: Tensor
    k: Tensor
    v: Tensor


def random_positions(length: int, heads: Heads, dtype: torch.dtype, seed: int) -> Positions:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    total = heads.num_heads + 2 * heads.num_kv_heads
    mixed = 2 * torch.randn(length, total, heads.head_dim, generator=generator).to(dtype)
    return Positions(*mixed.split_with_sizes([heads.num_heads, heads.num_kv_heads, heads.num_kv_heads], dim=1))


@dataclass(frozen=True)
class Part:
    """Rows first .. first + num_rows - 1 of one sequence."""

    sequence: Positions
    first: int
    num_rows: int


def attend(
    ops: Ops,
    heads: Heads,
    parts: Sequence[Part],
    block_size: int = 16,
    seed: int = 0,
    kv_dtype: torch.dtype | None = None,
    in_blocks: Callable[[Tensor], Tensor] = lambda rows: rows,
    out_dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Compute attention of the parts in one batch: [num_rows, H * K] each.

    Caches have kv_dtype and results out_dtype, or the parts' dtype; `in_blocks` converts [num_blocks, block_size, G, K
    or K + 4] to the backend's layout within blocks, unless that is rows or tiles.

    Blocks are shuffled by `seed`. Slots that no row of a part may read are NaN: the null block, positions behind the
    part, and positions in front of the window of its first row.
    """
    sizes = [-(-(part.first + part.num_rows) // block_size) for part in parts]
    ids = (
        torch.randperm(sum(sizes), generator=torch.Generator(torch.get_default_device()).manual_seed(seed)) + 1
    ).tolist()
    cached = kv_dtype or parts[0].sequence.k.dtype
    shape = ((sum(sizes) + 1) * block_size, heads.num_kv_heads, heads.head_dim)
    k_slots = as_cached(torch.full(shape, float("nan")), cached)
    v_slots = k_slots.clone()
    runs = []
    for part, size in zip(parts, sizes, strict=True):
        table = [ids.pop() for _ in range(size)]
        first = max(0, part.first - heads.window + 1) if heads.window else 0
        end = part.first + part.num_rows
        slots = [table[p // block_size] * block_size + p % block_size for p in range(first, end)]
        k_slots[slots] = as_cached(part.sequence.k[first:end], cached)
        v_slots[slots] = as_cached(part.sequence.v[first:end], cached)
        table[: first // block_size] = [0] * (first // block_size)
        runs.append(Running([0] * end, table, part.first))
    batch = make_batch([(run, part.num_rows) for run, part in zip(runs, parts, strict=True)], block_size)
    q = torch.cat([part.sequence.q[part.first : part.first + part.num_rows] for part in parts])
    metadata = ops.prepare_batch(heads.config, batch, block_size)
    k_cache, v_cache = (in_blocks(slots.unflatten(0, (-1, block_size))) for slots in (k_slots, v_slots))
    names = {dtype: name for name, dtype in KV_DTYPES.items()}  # float16 is a type of caches in some tests only
    if cached in names and ops.kv_layout(names[cached], block_size) == "tiles":
        k_cache, v_cache = in_tiles(k_cache, is_keys=True), in_tiles(v_cache, is_keys=False)
    attended = ops.attention(q, k_cache, v_cache, metadata, out_dtype or q.dtype)
    return list(attended.split_with_sizes([part.num_rows for part in parts]))
