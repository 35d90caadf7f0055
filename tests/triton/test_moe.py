"""Routing and experts, with plain and 8-bit weights, against float64."""

import pytest
import torch

from model.ops.interface import FfnWeights
from model.ops.triton import moe, topk_routing
from model.ops.triton.gemm_tiles import choose_tiling
from model.ops.triton.ops import TritonMoe, TritonOps
from model.ops.triton.packed_weights import TritonMatrix, WeightFormat, dequantize
from tests.support.checkpoints.random_weights import random_ffn
from tests.support.kernels import float64_oracle as oracle
from tests.support.routing_requests import naive_top_k, random_request, uniform_request
from tests.triton.cases import DTYPES, assert_close, both_tilings, integers, summed

FORMATS: list[WeightFormat] = ["plain", "int8", "fp8"]
pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _dequantized(matrix: TritonMatrix) -> list[torch.Tensor]:
    return list(dequantize(matrix))


def _experts_of(packed: TritonMoe) -> list[FfnWeights]:
    pairs = zip(_dequantized(packed.experts.w13), _dequantized(packed.experts.w2), strict=True)
    return [FfnWeights(w13[::2], w13[1::2], w2) for w13, w2 in pairs]


@pytest.mark.parametrize("weight_format", FORMATS)
def test_experts_over_random_shapes_counts_and_masks(
    dtype: torch.dtype, weight_format: WeightFormat, scale: int
) -> None:
    """Includes uneven loads, experts without rows, a different k per row, switched-off experts, and one row."""
    for case in range(3 * scale):
        num_rows, num_experts = (1, 8) if case == 0 else (integers(2, 90), integers(2, 9))
        dim, hidden = integers(1, 150), integers(1, 150)
        x, gate = torch.randn(num_rows, dim).to(dtype), torch.randn(num_experts, dim).to(dtype)
        gate[0] *= 4.0  # most rows choose this expert, or none does
        request = random_request(num_rows, num_experts, seed=case)
        ops = TritonOps(dtype, weight_format, deterministic=case == 1)
        weights = ops.pack_moe(gate, (random_ffn(dim, hidden, dtype) for _ in range(num_experts)))
        ours = summed(ops.moe(x, weights, request), x)
        assert request.allowed is not None
        exact = oracle.moe(x, gate, _experts_of(weights), request.experts_per_token, request.allowed)
        assert_close(ours, exact, dtype, 3)
        logits = (x.double() @ gate.double().T).tolist()
        for row, k in enumerate(request.experts_per_token.tolist()):
            expected = naive_top_k(logits[row], k, request.allowed[row].tolist())
            assert request.expert_ids[row].tolist() == expected + [-1] * (request.expert_ids.shape[1] - k)


def test_many_rows_of_one_expert_fill_several_tiles(dtype: torch.dtype) -> None:
    x, gate = torch.rand(150, 20).to(dtype), torch.stack((torch.ones(20), -torch.ones(20), torch.zeros(20))).to(dtype)
    experts = [random_ffn(20, 30, dtype) for _ in range(3)]
    for ops in both_tilings(dtype):
        request = uniform_request(150, 1)
        ours = summed(ops.moe(x, ops.pack_moe(gate, iter(experts)), request), x)
        assert request.expert_ids.unique().tolist() == [0]
        assert_close(ours, oracle.ffn(x, experts[0]), dtype)


def test_every_block_of_outputs_is_computed_in_any_group(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 or 7 blocks in groups of 3, over several tiles: the last group is cut, and so is the last block."""
    assert [moe.grouped_blocks(choose_tiling(rows, torch.bfloat16, "fp8", False)) for rows in (16, 64, 128)] == [
        1,
        1,
        8,
    ]
    monkeypatch.setattr(moe, "grouped_blocks", lambda tiling: 3)
    x, gate = torch.randn(40, 200).to(dtype), torch.randn(2, 200).to(dtype)
    ops, experts = TritonOps(dtype), [random_ffn(200, 20, dtype) for _ in range(2)]
    request = uniform_request(40, 1)
    ours = summed(ops.moe(x, ops.pack_moe(gate, iter(experts)), request), x)
    for expert in range(2):
        rows = request.expert_ids[:, 0] == expert
        assert bool(rows.any())
        assert_close(ours[rows], oracle.ffn(x[rows], experts[expert]), dtype)


def test_ties_go_to_the_lower_expert(dtype: torch.dtype) -> None:
    ops, request = TritonOps(dtype), uniform_request(3, 2)
    gate = torch.zeros(5, 8).to(dtype)
    gate[4, 0] = 1.0
    x = torch.zeros(3, 8).to(dtype)
    x[1, 0], x[2, 0] = 1.0, -1.0
    ops.moe(x, ops.pack_moe(gate, (random_ffn(8, 8, dtype) for _ in range(5))), request)
    assert request.expert_ids.tolist() == [[0, 1], [4, 0], [0, 1]]


def test_nan_in_a_row_stays_in_that_row(dtype: torch.dtype) -> None:
    ops = TritonOps(dtype)
    x, gate = torch.randn(6, 40).to(dtype), torch.randn(4, 40).to(dtype)
    weights = ops.pack_moe(gate, (random_ffn(40, 24, dtype) for _ in range(4)))
    clean = summed(ops.moe(x, weights, uniform_request(6, 2)), x)
    x[2, 5] = float("nan")
    request = uniform_request(6, 2)
    ours = summed(ops.moe(x, weights, request), x)
    others = [0, 1, 3, 4, 5]
    assert ours[2].isnan().all()
    assert torch.equal(ours[others], clean[others])
    assert ((request.expert_ids >= 0) & (request.expert_ids < 4)).all()


def test_the_dense_ffn_is_one_expert_for_all_rows(dtype: torch.dtype) -> None:
    x, ffn = torch.randn(70, 33).to(dtype), random_ffn(33, 65, dtype)
    for ops in both_tilings(dtype):
        assert_close(summed(ops.ffn(x, ops.pack_ffn(ffn)), x), oracle.ffn(x, ffn), dtype)


@pytest.mark.parametrize(("num_rows", "num_experts", "dim"), [(1, 8, 130), (9, 5, 33), (4, 19, 30)])
def test_the_gate_behind_a_norm_gives_the_bits_of_norm_then_experts(
    dtype: torch.dtype, num_rows: int, num_experts: int, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last shape reads 8 experts at a time: of the 32 places two groups are full, one is cut and one is empty."""
    if num_experts > 8:
        monkeypatch.setattr(topk_routing, "GATE_NUMBERS", 8 * 32)
        assert topk_routing.experts_at_a_time(32, 32) == 8
    ops = TritonOps(dtype)
    x, pending, weight = torch.randn(num_rows, dim).to(dtype), torch.randn(num_rows, dim).to(dtype), torch.rand(dim)
    gate, norm = torch.randn(num_experts, dim).to(dtype), weight.to(dtype)
    packed = ops.pack_moe(gate, (random_ffn(dim, 20, dtype) for _ in range(num_experts)))
    together, apart = (random_request(num_rows, num_experts, seed=dim) for _ in range(2))
    total, mixed = ops.add_norm_moe(x, pending, norm, 1e-5, packed, together)
    expected, normed = ops.add_rms_norm(x, pending, norm, 1e-5)
    assert torch.equal(total, expected)
    assert torch.equal(summed(mixed, x), summed(ops.moe(normed, packed, apart), x))
    assert torch.equal(together.expert_ids, apart.expert_ids)
    assert together.allowed is not None
    logits = (normed.double() @ gate.double().T).tolist()
    for row, (k, allowed) in enumerate(
        zip(together.experts_per_token.tolist(), together.allowed.tolist(), strict=True)
    ):
        assert together.expert_ids[row, :k].tolist() == naive_top_k(logits[row], k, allowed)


def test_reported_gate_logits_are_those_that_choose(dtype: torch.dtype) -> None:
    ops = TritonOps(dtype)
    x, gate = torch.randn(9, 33).to(dtype), torch.randn(5, 33).to(dtype)
    packed, request = ops.pack_moe(gate, (random_ffn(33, 20, dtype) for _ in range(5))), uniform_request(9, 2)
    logits = ops.gate_logits(x, packed)
    assert torch.allclose(logits.double(), x.double() @ gate.double().T, atol=1e-4)
    ops.moe(x, packed, request)
    assert request.expert_ids.tolist() == [naive_top_k(row, 2, [True] * 5) for row in logits.tolist()]
