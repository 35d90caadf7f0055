"""Ops of the reference backend against naive loops."""

import cmath
import math

import pytest
import torch
from torch import Tensor

from model.ops.interface import FfnWeights
from model.ops.reference.ops import ReferenceOps, rotary_angles, rotate, route
from tests.support.routing_requests import naive_top_k, random_request, uniform_request


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _swiglu(x: Tensor, expert: FfnWeights) -> list[float]:
    """Compute w2( silu(w1 x) * (w3 x) ) number by number."""
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
    mixed = random_request(num_rows, num_experts) if k == 3 else uniform_request(num_rows, k)
    ours = ops.moe(x, ops.pack_moe(gate, iter(experts)), mixed)
    for row, token in enumerate(x):
        logits = [float(gate[e] @ token) for e in range(num_experts)]
        allowed = None if mixed.allowed is None else mixed.allowed[row].tolist()
        expert_ids = naive_top_k(logits, int(mixed.experts_per_token[row]), allowed)
        assert mixed.expert_ids[row].tolist() == expert_ids + [-1] * (mixed.expert_ids.shape[1] - len(expert_ids))
        total = sum(math.exp(logits[e]) for e in expert_ids)
        expected = torch.zeros(dim)
        for e in expert_ids:
            expected += math.exp(logits[e]) / total * torch.tensor(_swiglu(token, experts[e]))
        assert torch.allclose(ours[row], expected, rtol=1e-4, atol=1e-4)


def test_ties_of_the_gate_go_to_the_lower_expert() -> None:
    expert_ids, share = route(torch.tensor([[1.0, 3.0, 0.0, 3.0, 3.0], [2.0] * 5]), uniform_request(2, 2))
    assert expert_ids.tolist() == [[1, 3], [0, 1]]
    assert share.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_rotary_turns_pairs_like_complex_numbers() -> None:
    head_dim, theta = 8, 10_000.0
    positions = torch.tensor([0, 1, 7, 300])
    x = torch.randn(len(positions), 2, head_dim)
    rotated = rotate(x, *rotary_angles(positions, head_dim, theta))
    for row, position in enumerate(positions.tolist()):
        for head in range(2):
            for i in range(head_dim // 2):
                pair = complex(float(x[row, head, i]), float(x[row, head, i + head_dim // 2]))
                expected = pair * cmath.exp(1j * position * theta ** (-2 * i / head_dim))
                ours = complex(float(rotated[row, head, i]), float(rotated[row, head, i + head_dim // 2]))
                assert abs(ours - expected) < 1e-4


def test_rms_norm_equals_its_formula() -> None:
    x, weight = torch.randn(3, 7), torch.rand(7)
    ours = ReferenceOps().rms_norm(x, weight, 1e-5)
    for row in range(3):
        size = math.sqrt(sum(float(value) ** 2 for value in x[row]) / 7 + 1e-5)
        assert torch.allclose(ours[row], x[row] / size * weight, atol=1e-6)
