"""Plan and launch the attention kernels. Nothing here reads back from the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig
from model.forward_batch import ForwardBatch
from model.ops.triton.attention.kernels import LOG2_E, chunk_kernel, decode_kernel, merge_kernel
from model.ops.triton.kv_blocks import with_scales
from model.ops.triton.launch import Launch, blocks, power_of_two

NO_WINDOW = 1 << 30
SHORTEST_SPLIT = 256  # positions; shorter splits would not pay for their merging
SEPARATE_SPAN = 1024  # positions, if bits must not depend on the batch; a long context has one partial for each span
TARGET_PROGRAMS = 528  # four on each of the 132 multiprocessors of an H100
MERGED_SPLITS = 16


@dataclass(frozen=True)
class AttentionTiling:
    """Tile sizes: `tile` rows (queries times query heads per KV head), `keys` keys at a time."""

    tile: int
    keys: int
    num_warps: int
    num_stages: int


DECODE = AttentionTiling(tile=16, keys=64, num_warps=4, num_stages=3)
CHUNK = AttentionTiling(tile=128, keys=32, num_warps=8, num_stages=2)
# For decode rows and chunks, if bits must not depend on the kind of row.
DETERMINISTIC = AttentionTiling(tile=64, keys=32, num_warps=8, num_stages=2)
WIDE = AttentionTiling(tile=16, keys=16, num_warps=4, num_stages=1)  # float32 has no tensor cores


@dataclass(frozen=True)
class AttentionPlan:
    """Batch, query tiles and tile sizes of one step."""

    batch: ForwardBatch
    tile_sequence: Tensor  # [tiles] int32: the sequence of a tile of queries; no tiles if every sequence has one row
    tile_first_row: Tensor  # [tiles] int32: its first row of the T; beyond the sequence's rows if the tile is empty
    decode: AttentionTiling
    chunk: AttentionTiling
    deterministic: bool
    config: ModelConfig
    block_size: int

    @property
    def window(self) -> int:
        return self.config.window or NO_WINDOW

    @property
    def span(self) -> int:
        return SEPARATE_SPAN if self.deterministic else SHORTEST_SPLIT


def plan_attention(
    config: ModelConfig, batch: ForwardBatch, block_size: int, wide: bool, deterministic: bool
) -> AttentionPlan:
    """Choose tile sizes and cut the batch into tiles.

    `wide`: tiles for float32. `deterministic`: the same tile sizes for every batch.
    """
    decode, chunk = (WIDE, WIDE) if wide else (DETERMINISTIC, DETERMINISTIC) if deterministic else (DECODE, CHUNK)
    per_kv_head = config.num_heads // config.num_kv_heads
    decode, chunk = _at_least(decode, per_kv_head), _at_least(chunk, per_kv_head)
    queries = chunk.tile // per_kv_head
    nothing = batch.query_start[:0]
    is_decode = len(batch.positions) == len(batch.context_len)
    tiles = (nothing, nothing) if is_decode else query_tiles(batch.query_start, len(batch.positions), queries)
    return AttentionPlan(batch, *tiles, decode, chunk, deterministic, config, block_size)


def query_tiles(query_start: Tensor, num_rows: int, queries: int) -> tuple[Tensor, Tensor]:
    """Return sequence and first row of every tile of `queries` rows, without reading back from the device.

    The number of tiles follows from shapes alone: the tiles of sequence s start at index query_start[s] // queries + s,
    which leaves enough of them for every sequence. Example: 5 and 1 rows in tiles of 2, query_start = [0, 5, 6]: the
    sequences' tiles start at 0 and 5 // 2 + 1 = 3; sequences are [0, 0, 0, 1, 1] and first rows [0, 2, 4, 5, 7]. The
    last tile is empty.
    """
    num_sequences = len(query_start) - 1
    index = torch.arange(num_sequences, dtype=torch.int32, device=query_start.device)
    starts = query_start[:-1] // queries + index
    tiles = torch.arange(num_rows // queries + num_sequences, dtype=torch.int32, device=query_start.device)
    sequence = torch.searchsorted(starts, tiles, right=True, out_int32=True) - 1
    first_row = query_start[sequence] + (tiles - starts[sequence]) * queries
    return sequence.to(torch.int32), first_row.to(torch.int32)


def attention(launch: Launch, q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan) -> Tensor:
    """Compute attention: [T, H, K], caches [num_blocks, block_size, G, K] -> [T, H * K]."""
    out = torch.empty_like(q)
    if len(plan.tile_sequence):
        _attend_chunks(launch, q, k_cache, v_cache, out, plan)
    _attend_single_rows(launch, q, k_cache, v_cache, out, plan)
    return out.flatten(1)


def _attend_chunks(
    launch: Launch, q: Tensor, k_cache: Tensor, v_cache: Tensor, out: Tensor, plan: AttentionPlan
) -> None:
    batch, (_, num_heads, head_dim), num_kv_heads = plan.batch, q.shape, k_cache.shape[2]
    batch_arguments = batch.query_start, batch.context_len, batch.block_tables, plan.tile_sequence, plan.tile_first_row
    sizes = batch.block_tables.shape[1], num_heads, num_kv_heads, plan.window, head_dim**-0.5 * LOG2_E
    launch(
        chunk_kernel,
        (len(plan.tile_sequence), num_kv_heads),
        *(q, *with_scales(k_cache, v_cache), out, *batch_arguments, *sizes),
        **_constants(plan, plan.chunk, num_heads // num_kv_heads, head_dim, k_cache.shape[-1]),
    )


def _attend_single_rows(
    launch: Launch, q: Tensor, k_cache: Tensor, v_cache: Tensor, out: Tensor, plan: AttentionPlan
) -> None:
    batch, (_, num_heads, head_dim), num_kv_heads = plan.batch, q.shape, k_cache.shape[2]
    num_sequences, table_width = batch.block_tables.shape
    num_splits = _num_splits(plan, num_sequences * num_kv_heads, table_width)
    partial_values = q.new_empty(num_sequences, num_splits, num_heads, head_dim, dtype=torch.float32)
    partial_sums = q.new_empty(num_sequences, num_splits, num_heads, 2, dtype=torch.float32)
    batch_arguments = batch.query_start, batch.context_len
    sizes = table_width, num_heads, num_kv_heads, plan.window, num_splits, head_dim**-0.5 * LOG2_E
    caches = with_scales(k_cache, v_cache)
    constants = _constants(plan, plan.decode, num_heads // num_kv_heads, head_dim, k_cache.shape[-1])
    launch(
        decode_kernel,
        (num_sequences, num_kv_heads, num_splits),
        *(q, *caches, partial_values, partial_sums, *batch_arguments, batch.block_tables, *sizes),
        **constants,
    )
    launch(
        merge_kernel,
        (num_sequences, num_heads),
        *(partial_values, partial_sums, out, *batch_arguments, num_heads, plan.window, num_splits),
        **{name: constants[name] for name in ("HEAD_DIM", "SPAN", "KEYS", "BLOCK_DIM", "SEPARATE")},
        GROUP=1 if plan.deterministic else MERGED_SPLITS,
        num_warps=4,
        num_stages=1,
    )


def _num_splits(plan: AttentionPlan, num_tiles: int, table_width: int) -> int:
    """Return how many programs share the keys of a row: enough to fill the GPU, or one for each separate span."""
    longest = table_width * plan.block_size
    if plan.config.window is not None:
        longest = min(longest, plan.config.window + plan.span)
    num_spans = blocks(longest, plan.span)
    return num_spans if plan.deterministic else max(1, min(num_spans, TARGET_PROGRAMS // num_tiles))


def _constants(
    plan: AttentionPlan, tiling: AttentionTiling, per_kv_head: int, head_dim: int, row: int
) -> dict[str, int]:
    keys = tiling.keys if row == head_dim else max(16, tiling.keys // 2)  # int8 keys are widened in registers
    return {
        "BLOCK_SIZE": plan.block_size,
        "PER_KV_HEAD": per_kv_head,
        "HEAD_DIM": head_dim,
        "ROW": row,
        "SPAN": plan.span,
        "TILE": tiling.tile,
        "KEYS": keys,
        "BLOCK_DIM": power_of_two(head_dim, 16),
        "SEPARATE": plan.deterministic,
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
    }


def _at_least(tiling: AttentionTiling, per_kv_head: int) -> AttentionTiling:
    """Enlarge the tile if needed, so that it holds all query heads of a KV head."""
    tile = max(tiling.tile, power_of_two(per_kv_head))
    return AttentionTiling(tile, tiling.keys, tiling.num_warps, tiling.num_stages)
