"""The steps that measure the memory of intermediate results are the largest ones."""

from dataclasses import replace

import pytest
import torch

from model.dummy_weights import random_model
from model.group import ALONE, Group
from model.lora.rows import RowTerms
from model.ops.interface import RoutingRequest
from model.ops.reference.ops import Matrix, ReferenceMoe, ReferenceOps
from model.profile_step import run_profile_steps
from model.sampling_batch import SampledRows, SamplingRows
from tests.support.kernels.attention_cases import Heads
from tests.support.kernels.paged import CPU


class WatchedOps(ReferenceOps):
    """Reference backend that keeps the shapes of its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.sampled: list[tuple[int, int]] = []
        self.most_experts = 0

    def logits(self, x: torch.Tensor, rows: torch.Tensor, head: Matrix) -> torch.Tensor:
        result = super().logits(x, rows, head)
        self.shapes.append((len(x), *result.shape))
        assert result.isfinite().all()
        return result

    def moe(
        self,
        x: torch.Tensor,
        weights: ReferenceMoe,
        request: RoutingRequest,
        group: Group = ALONE,
        terms: RowTerms | None = None,
    ) -> torch.Tensor:
        self.most_experts = max(self.most_experts, request.expert_ids.shape[1])
        return super().moe(x, weights, request, group, terms)

    def sample(self, logits: torch.Tensor, rows: SamplingRows) -> SampledRows:
        self.sampled.append((len(logits), rows.max_logprobs))
        return super().sample(logits, rows)


@pytest.mark.parametrize("num_experts", [0, 4])
def test_the_steps_have_all_experts_per_row_and_logits_of_every_row(num_experts: int) -> None:
    config = replace(Heads(4, 2, 16).config, num_experts=num_experts, experts_per_token=min(num_experts, 2))
    ops = WatchedOps()
    model = random_model(config, torch.float32, CPU, ops, seed=0)
    run_profile_steps(model, num_rows=50, num_logits=7, block_size=16, kv_dtype="float32")
    assert ops.shapes == [(50, 7, 32), (50, 50, 32)]
    assert ops.sampled == [(7, 20), (50, 20)]
    assert ops.most_experts == num_experts
