"""Paged attention of the reference backend against a naive loop over positions."""

import math

import pytest
import torch
from torch import Tensor

from model.ops.reference.attention import attend, plan_attention
from tests.support.kernels.paged import Running, make_batch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _naive_attention(q: Tensor, keys: Tensor, values: Tensor, position: int, window: int | None) -> Tensor:
    """Attend with one query [H, K] at `position` over its sequence's keys and values [length, G, K]."""
    out = torch.zeros_like(q)
    per_kv_head = len(q) // keys.shape[1]
    first = 0 if window is None else max(0, position - window + 1)
    for head in range(len(q)):
        kv_head = head // per_kv_head
        scores = [float(q[head] @ keys[j, kv_head]) / math.sqrt(q.shape[1]) for j in range(first, position + 1)]
        total = sum(math.exp(score) for score in scores)
        for j, score in enumerate(scores, start=first):
            out[head] += math.exp(score) / total * values[j, kv_head]
    return out


@pytest.mark.parametrize("window", [None, 1, 3, 16, 100])
def test_attention_equals_a_naive_loop_over_positions(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode rows of different lengths beside chunks of prompts; low bounds make every kind of cut occur."""
    monkeypatch.setattr("model.ops.reference.attention.MAX_GATHER_ELEMENTS", 2000)
    monkeypatch.setattr("model.ops.reference.attention.MAX_SPAN_ROWS", 3)
    num_heads, num_kv_heads, head_dim, block_size = 4, 2, 6, 4
    lengths, new = [1, 30, 7, 33, 12, 5], [1, 1, 7, 8, 1, 1]
    k_slots = torch.full((40 * block_size, num_kv_heads, head_dim), float("nan"))
    v_slots = k_slots.clone()
    ids = (torch.randperm(39) + 1).tolist()
    runs, keys, values = [], [], []
    for length, num_new in zip(lengths, new, strict=True):
        table = [ids.pop() for _ in range(-(-length // block_size))]
        slots = [table[p // block_size] * block_size + p % block_size for p in range(length)]
        keys.append(torch.randn(length, num_kv_heads, head_dim))
        values.append(torch.randn(length, num_kv_heads, head_dim))
        k_slots[slots], v_slots[slots] = keys[-1], values[-1]
        runs.append(Running([0] * length, table, length - num_new))
    batch = make_batch(list(zip(runs, new, strict=True)), block_size)
    q = torch.randn(sum(new), num_heads, head_dim)
    plan = plan_attention(batch, block_size, window, num_heads, head_dim)
    ours = attend(q, k_slots, v_slots, plan, q.dtype).view(q.shape)
    owners = [i for i, num_new in enumerate(new) for _ in range(num_new)]
    for row, (owner, position) in enumerate(zip(owners, batch.positions.tolist(), strict=True)):
        expected = _naive_attention(q[row], keys[owner], values[owner], position, window)
        assert torch.allclose(ours[row], expected, atol=1e-5), (row, owner, position)
