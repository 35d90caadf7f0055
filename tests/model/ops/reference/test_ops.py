"""Each function of the reference backend against a loop that nobody could call clever."""

import cmath
import math

import pytest
import torch
from torch import Tensor

from model.forward_batch import ForwardBatch
from model.ops.interface import FfnWeights
from model.ops.reference.attention import attend, plan_attention
from model.ops.reference.ops import ReferenceOps, rotary_angles, rotate, route
from tests.support.expert_choices import naive_choice, random_choice, uniform
from tests.support.paged import Running, make_batch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _swiglu(x: Tensor, expert: FfnWeights) -> list[float]:
    """w2( silu(w1 x) * (w3 x) ), number by number."""
    hidden = []
    for f in range(len(expert.w1)):
        a = sum(float(expert.w1[f, d]) * float(x[d]) for d in range(len(x)))
        b = sum(float(expert.w3[f, d]) * float(x[d]) for d in range(len(x)))
        hidden.append(a / (1 + math.exp(-a)) * b)
    return [sum(float(row[f]) * hidden[f] for f in range(len(hidden))) for row in expert.w2]


@pytest.mark.parametrize(("num_experts", "k"), [(1, 1), (4, 1), (4, 2), (8, 3), (4, 4)])
def test_the_moe_equals_a_naive_loop_over_tokens_and_experts(num_experts: int, k: int) -> None:
    num_rows, dim, hidden = 6, 8, 5
    x, gate = torch.randn(num_rows, dim), torch.randn(num_experts, dim)
    experts = [
        FfnWeights(torch.randn(hidden, dim), torch.randn(hidden, dim), torch.randn(dim, hidden))
        for _ in range(num_experts)
    ]
    ops = ReferenceOps()
    mixed = random_choice(num_rows, num_experts) if k == 3 else uniform(num_rows, k)
    ours = ops.moe(x, ops.pack_moe(gate, iter(experts)), mixed)
    for row, token in enumerate(x):
        logits = [float(gate[e] @ token) for e in range(num_experts)]
        allowed = None if mixed.allowed is None else mixed.allowed[row].tolist()
        expert_ids = naive_choice(logits, int(mixed.experts_per_token[row]), allowed)
        assert mixed.expert_ids[row].tolist() == expert_ids + [-1] * (mixed.expert_ids.shape[1] - len(expert_ids))
        total = sum(math.exp(logits[e]) for e in expert_ids)
        expected = torch.zeros(dim)
        for e in expert_ids:
            expected += math.exp(logits[e]) / total * torch.tensor(_swiglu(token, experts[e]))
        assert torch.allclose(ours[row], expected, rtol=1e-4, atol=1e-4)


def test_ties_of_the_gate_go_to_the_lower_expert() -> None:
    expert_ids, share = route(torch.tensor([[1.0, 3.0, 0.0, 3.0, 3.0], [2.0] * 5]), uniform(2, 2))
    assert expert_ids.tolist() == [[1, 3], [0, 1]]
    assert share.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_rotary_turns_pairs_like_complex_numbers() -> None:
    head_dim, theta = 8, 10_000.0
    positions = torch.tensor([0, 1, 7, 300])
    x = torch.randn(len(positions), 2, head_dim)
    turned = rotate(x, *rotary_angles(positions, head_dim, theta))
    for row, position in enumerate(positions.tolist()):
        for head in range(2):
            for i in range(head_dim // 2):
                pair = complex(float(x[row, head, i]), float(x[row, head, i + head_dim // 2]))
                expected = pair * cmath.exp(1j * position * theta ** (-2 * i / head_dim))
                ours = complex(float(turned[row, head, i]), float(turned[row, head, i + head_dim // 2]))
                assert abs(ours - expected) < 1e-4


def test_rms_norm_equals_its_formula() -> None:
    x, weight = torch.randn(3, 7), torch.rand(7)
    ours = ReferenceOps().rms_norm(x, weight, 1e-5)
    for row in range(3):
        size = math.sqrt(sum(float(value) ** 2 for value in x[row]) / 7 + 1e-5)
        assert torch.allclose(ours[row], x[row] / size * weight, atol=1e-6)


def _naive_attention(q: Tensor, keys: Tensor, values: Tensor, position: int, window: int | None) -> Tensor:
    """One query [H, K] at `position` over its sequence's keys and values [length, G, K]."""
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
    """Decode rows of unlike lengths beside prompts' chunks; the bounds are lowered so that every kind of cut occurs."""
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
    ours = attend(q, k_slots, v_slots, plan).view(q.shape)
    owners = [i for i, num_new in enumerate(new) for _ in range(num_new)]
    for row, (owner, position) in enumerate(zip(owners, batch.positions.tolist(), strict=True)):
        expected = _naive_attention(q[row], keys[owner], values[owner], position, window)
        assert torch.allclose(ours[row], expected, atol=1e-5), (row, owner, position)


def test_the_example_of_the_batch_is_what_the_builder_makes() -> None:
    """ForwardBatch's docstring: a decode row at position 5 beside a prefill of two tokens."""
    batch: ForwardBatch = make_batch([(Running([0] * 6, [7, 2], 5), 1), (Running([0] * 2, [3]), 2)], block_size=4)
    assert batch.slot_mapping.tolist() == [9, 12, 13]
    assert batch.query_start.tolist() == [0, 1, 3]
    assert batch.block_tables.tolist() == [[7, 2], [3, 0]]
