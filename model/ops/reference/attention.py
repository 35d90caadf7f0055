"""Paged attention in plain torch: rows are cut into spans, and each span gathers its keys through the block table.

A span has one or more row groups, and each group has one range of slots. Decode rows of many sequences are padded into
one gather; the rows of a prompt's chunk share the gather of their sequence. Both are bounded, so that a step's scratch
memory does not grow with context length times batch. Letters as in model/ops/interface.py; B row groups of a span,
Q rows of a group, L keys of a group, R = H / G.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.forward_batch import ForwardBatch
from model.ops.reference.kv_int8 import as_numbers

MAX_SPAN_ELEMENTS = 1 << 24  # scores of a prompt's span: 64 MiB in float32
# Keys x H * K of all decode rows of a span: larger gathers leave the CPU cache and are half as fast.
MAX_GATHER_ELEMENTS = 1 << 18
MAX_SPAN_ROWS = 256  # of one prompt; with a window, longer spans would only gather keys that most rows do not see


@dataclass(frozen=True)
class Span:
    """Rows that attend together. Row q of group b sees key l of the group if mask[b, 0, 0, q, l]."""

    rows: Tensor  # [B, Q] indices into the batch's T rows
    slots: Tensor  # [B, L] slots of the keys; padding repeats a visible slot of the same group
    mask: Tensor  # [B, 1, 1, Q, L] bool


@dataclass(frozen=True)
class AttentionPlan:
    """Spans of one batch, which together contain every row once."""

    spans: list[Span]


@dataclass(frozen=True)
class _Chunk:
    """Rows first_row .. first_row + num_rows - 1 of one sequence; the first is at position `start`."""

    sequence: int
    first_row: int
    num_rows: int
    start: int

    def num_keys(self, window: int | None) -> int:
        """Return the number of keys that some row sees. Example: start 10, 3 rows, window 4: keys 7 .. 12, so 6."""
        end = self.start + self.num_rows
        return end if window is None else end - max(0, self.start - window + 1)


def plan_attention(
    batch: ForwardBatch, block_size: int, window: int | None, num_heads: int, head_dim: int
) -> AttentionPlan:
    """Cut the batch's rows into spans."""
    starts = batch.query_start.tolist()
    last_positions = (batch.context_len - 1).tolist()
    decodes: list[_Chunk] = []
    spans: list[Span] = []
    for sequence, last in enumerate(last_positions):
        first_row, num_rows = starts[sequence], starts[sequence + 1] - starts[sequence]
        chunk = _Chunk(sequence, first_row, num_rows, last - num_rows + 1)
        if num_rows == 1:
            decodes.append(chunk)
        else:
            spans += [_span(batch, [part], block_size, window) for part in _parts(chunk, num_heads)]
    spans += [_span(batch, group, block_size, window) for group in _groups(decodes, window, num_heads * head_dim)]
    return AttentionPlan(spans)


def _parts(chunk: _Chunk, num_heads: int) -> Iterator[_Chunk]:
    """Cut a prompt's chunk so that heads x rows x keys stays bounded."""
    num_keys = chunk.start + chunk.num_rows
    size = max(1, min(MAX_SPAN_ROWS, MAX_SPAN_ELEMENTS // (num_keys * num_heads)))
    for offset in range(0, chunk.num_rows, size):
        num_rows = min(size, chunk.num_rows - offset)
        yield _Chunk(chunk.sequence, chunk.first_row + offset, num_rows, chunk.start + offset)


def _groups(decodes: list[_Chunk], window: int | None, row_elements: int) -> Iterator[list[_Chunk]]:
    """Group decode rows of similar length, as many as the bound of the padded gather allows."""
    group: list[_Chunk] = []
    for chunk in sorted(decodes, key=lambda chunk: chunk.num_keys(window)):
        if group and (len(group) + 1) * chunk.num_keys(window) * row_elements > MAX_GATHER_ELEMENTS:
            yield group
            group = []
        group.append(chunk)
    if group:
        yield group


def _span(batch: ForwardBatch, chunks: list[_Chunk], block_size: int, window: int | None) -> Span:
    """Build the span of chunks that have equal numbers of rows."""
    device = batch.positions.device
    num_rows = chunks[0].num_rows
    num_keys = max(chunk.num_keys(window) for chunk in chunks)
    first_rows = torch.tensor([chunk.first_row for chunk in chunks], device=device)
    rows = first_rows[:, None] + torch.arange(num_rows, device=device)  # [B, Q]
    positions = batch.positions[rows]  # [B, Q]
    last = positions[:, -1:]  # [B, 1]
    first = torch.zeros_like(last) if window is None else (positions[:, :1] - window + 1).clamp(min=0)
    keys = first + torch.arange(num_keys, device=device)  # [B, L] absolute positions
    mask = keys[:, None] <= positions[:, :, None]  # [B, Q, L]
    if window is not None:
        mask &= keys[:, None] > positions[:, :, None] - window
    tables = batch.block_tables[[chunk.sequence for chunk in chunks]].long()  # [B, M]
    readable = torch.minimum(keys, last)  # padding repeats the group's last position, never a slot of another sequence
    blocks = tables.gather(1, readable // block_size)  # [B, L]
    return Span(rows, blocks * block_size + readable % block_size, mask[:, None, None])


def attend(q: Tensor, k_slots: Tensor, v_slots: Tensor, plan: AttentionPlan, out_dtype: torch.dtype) -> Tensor:
    """Compute attention: [T, H, K], two caches [slots, G, K] (or int8 rows) -> [T, H * K]. Works in float32."""
    out = torch.empty_like(q, dtype=out_dtype)
    for span in plan.spans:
        keys, values = as_numbers(k_slots[span.slots]), as_numbers(v_slots[span.slots])
        out[span.rows] = _attend_span(q[span.rows], keys, values, span.mask).to(out_dtype)
    return out.flatten(1)


def _attend_span(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend within one span: q [B, Q, H, K], k and v [B, L, G, K] float32, mask [B, 1, 1, Q, L] -> float32
    [B, Q, H, K].

    The R * Q query rows of a KV head form one matrix, so that keys are not copied per query head.
    """
    num_groups, num_rows, num_heads, head_dim = q.shape
    num_keys, num_kv_heads = k.shape[1:3]
    per_kv_head = (num_groups, num_kv_heads, num_heads // num_kv_heads, num_rows)  # B, G, R, Q
    queries = q.float().view(num_groups, num_rows, num_kv_heads, -1, head_dim).permute(0, 2, 3, 1, 4)  # [B, G, R, Q, K]
    queries = queries.reshape(num_groups, num_kv_heads, -1, head_dim)  # [B, G, R * Q, K]
    keys, values = (cached.transpose(1, 2).contiguous() for cached in (k, v))  # [B, G, L, K]
    scores = torch.matmul(queries, keys.mT) * head_dim**-0.5  # [B, G, R * Q, L]
    visible = scores.view(*per_kv_head, num_keys).masked_fill(~mask, float("-inf"))
    weights = visible.softmax(-1).view(num_groups, num_kv_heads, -1, num_keys)
    out = torch.matmul(weights, values).view(*per_kv_head, head_dim)  # [B, G, R, Q, K]
    return out.permute(0, 3, 1, 2, 4).reshape(q.shape)  # [B, Q, H, K]
