"""Experts, sums and the whole network on two or three ranks: what they gather is what one rank computes.

Ranks are computed one after the other, again and again until each gather has got all parts: a kernel under the
interpreter is no place for threads.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.checkpoint import read_config
from model.cut import PANEL, Cut, all_cuts
from model.group import ALONE, Group
from model.kv_pool import KvPool
from model.loader import LoadOptions, load_model
from model.mixtral import Mixtral
from model.ops.interface import FfnWeights
from model.ops.triton.ops import TritonMoe, TritonOps
from model.ops.triton.packed_weights import WeightFormat
from model.ops.triton.pending_sum import Parts
from tests.support.checkpoints.mixtral import Shape, save_random_weights
from tests.support.checkpoints.random_weights import random_ffn
from tests.support.kernels.paged import Running, make_batch
from tests.support.routing_requests import random_request
from tests.triton.cases import DTYPES, assert_close, row_by_row, summed

DIM, HIDDEN = 48, 80  # 2 and 3 panels: uneven parts of 2 ranks, and the last ones are not whole
COLUMNS = 1100  # of a pending sum: two blocks
Compute = Callable[["TakingTurns"], Tensor]


class TakingTurns:
    """The group of one rank of several that run one after the other. A part that is not there yet is zeros."""

    def __init__(self, cut: Cut, parts: dict[tuple[int, int], Tensor]) -> None:
        """`parts`: of all ranks, by number of the gather and rank."""
        self.cut = cut
        self._parts = parts
        self._count = 0

    def gather(self, part: Tensor, width: int, unit: int) -> Tensor:
        number, self._count = self._count, self._count + 1
        self._parts[number, self.cut.rank] = part.clone()
        gathered = [
            self._parts.get((number, cut.rank), part.new_zeros(len(part), len(cut.part(width, unit))))
            for cut in all_cuts(self.cut.size)
        ]
        return torch.cat(gathered, 1)


def on_ranks(size: int, compute: Compute, num_gathers: int) -> list[Tensor]:
    """Return what each rank computes, behind `num_gathers` gathers in a row."""
    parts: dict[tuple[int, int], Tensor] = {}
    for _ in range(num_gathers + 1):  # a part is complete one round behind the parts that it was computed from
        results = [compute(TakingTurns(cut, parts)) for cut in all_cuts(size)]
    return results


def part_of(ffn: FfnWeights, cut: Cut) -> FfnWeights:
    """Return a rank's outputs of each matrix."""

    def rows(weight: Tensor) -> Tensor:
        own = cut.part(len(weight), PANEL)
        return weight[own.start : own.stop].clone()

    return FfnWeights(rows(ffn.w1), rows(ffn.w3), rows(ffn.w2))


@pytest.mark.parametrize(("dtype", "weight_format"), [(DTYPES[0], "plain"), (DTYPES[1], "int8"), (DTYPES[1], "fp8")])
def test_experts_on_ranks_have_the_bits_of_one(
    dtype: torch.dtype, weight_format: WeightFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numpy.matmul", row_by_row)
    ops = TritonOps(dtype, weight_format, deterministic=True)
    x, gate = torch.randn(5, DIM).to(dtype), torch.randn(3, DIM).to(dtype)
    experts, request = [random_ffn(DIM, HIDDEN, dtype) for _ in range(3)], random_request(5, 3, seed=1)
    expected = ops.summed(ops.moe(x, ops.pack_moe(gate, iter(experts)), request))

    def compute(group: TakingTurns) -> Tensor:
        packed: TritonMoe = ops.pack_moe(gate, (part_of(expert, group.cut) for expert in experts))
        return group.gather(ops.summed(ops.moe(x, packed, request, group)), DIM, PANEL)

    for result in on_ranks(2, compute, num_gathers=2):
        assert torch.equal(result, expected)


def test_the_gate_is_whole_and_a_dense_layer_is_cut_likewise() -> None:
    dtype = DTYPES[1]
    ops = TritonOps(dtype)
    x, pending, norm = torch.randn(3, DIM).to(dtype), torch.randn(3, DIM).to(dtype), torch.ones(DIM, dtype=dtype)
    gate, experts = torch.randn(2, DIM).to(dtype), [random_ffn(DIM, HIDDEN, dtype) for _ in range(2)]
    request = random_request(3, 2, seed=2)
    whole, packed = ops.pack_ffn(experts[0]), ops.pack_moe(gate, iter(experts))
    total, y = ops.add_norm_moe(x, pending, norm, 1e-5, packed, request)
    expected_ids = request.expert_ids.clone()

    def sparse(group: TakingTurns) -> Tensor:
        part = ops.pack_moe(gate, (part_of(expert, group.cut) for expert in experts))
        own_total, own_y = ops.add_norm_moe(x, pending, norm, 1e-5, part, request, group)
        assert torch.equal(own_total, total) and torch.equal(request.expert_ids, expected_ids)
        return group.gather(ops.summed(own_y), DIM, PANEL)

    def dense(group: TakingTurns) -> Tensor:
        return group.gather(ops.summed(ops.ffn(x, ops.pack_ffn(part_of(experts[0], group.cut)), group)), DIM, PANEL)

    for result in on_ranks(2, sparse, num_gathers=2):
        assert_close(result, summed(y, x).double(), dtype)
    for result in on_ranks(2, dense, num_gathers=2):
        assert_close(result, summed(ops.ffn(x, whole), x).double(), dtype)


@pytest.mark.parametrize("num_splits", [1, 3])
def test_a_pending_sum_is_what_the_next_norm_adds(num_splits: int) -> None:
    """Added to zeros, its norm dropped: the same bits of a linear layer, and of experts of which some are absent."""
    dtype, num_rows, max_k = DTYPES[1], 5, 3
    ops, zeros = TritonOps(dtype), torch.zeros(num_rows, COLUMNS, dtype=dtype)
    linear = Parts(torch.randn(num_splits, num_rows, COLUMNS), None, None)
    ids = torch.tensor([[0, 1, 2], [3, -1, -1], [2, 0, -1], [1, 2, 3], [-1, -1, -1]], dtype=torch.int32)
    values = torch.randn(num_splits, num_rows * max_k, COLUMNS)
    values.view(num_splits, num_rows, max_k, -1)[:, ids < 0] = float("nan")
    experts = Parts(values, torch.rand(num_rows, max_k), ids)
    for parts in (linear, experts):
        added, _ = ops.add_rms_norm(zeros, parts, torch.ones(COLUMNS, dtype=dtype), 1e-5)
        assert torch.equal(ops.summed(parts), added)
    assert ops.summed(zeros) is zeros


def test_the_network_on_ranks_has_the_bits_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numpy.matmul", row_by_row)
    shape = Shape(dim=DIM, hidden_dim=HIDDEN, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=16, num_experts=2,
                  vocab_size=40)  # fmt: skip
    path, device = save_random_weights(shape, tmp_path), torch.get_default_device()
    ops = TritonOps(torch.float32, deterministic=True)

    def load(group: Group) -> Mixtral:
        config = read_config(path)[0]
        return load_model(path, config, ops, LoadOptions(torch.float32, device, group=group))

    def logits_of(model: Mixtral) -> Tensor:
        pool = KvPool(model.group.cut.with_own_heads(model.config), 6, 4, "float32", device)
        run = Running([5, 31, 7], [1])
        return model.forward(make_batch([(run, 3)], 4), pool)

    networks = {cut.rank: load(TakingTurns(cut, {})) for cut in all_cuts(2)}

    def compute(group: TakingTurns) -> Tensor:
        networks[group.cut.rank].group = group
        return logits_of(networks[group.cut.rank])

    expected = logits_of(load(ALONE))
    for result in on_ranks(2, compute, num_gathers=5):  # attention, output, hidden rows, experts, logits
        assert torch.equal(result, expected)
