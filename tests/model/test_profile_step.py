"""The step that measures the memory of intermediate results has the largest number of rows and logits."""

from dataclasses import replace

import pytest
import torch

from model.dummy_weights import random_model
from model.ops.reference.ops import Matrix, ReferenceOps
from model.profile_step import run_profile_step
from tests.support.native_cases import Heads
from tests.support.paged import CPU


class WatchedOps(ReferenceOps):
    """Reference backend that keeps the shapes of its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def logits(self, x: torch.Tensor, rows: torch.Tensor, norm: torch.Tensor, eps: float, head: Matrix) -> torch.Tensor:
        result = super().logits(x, rows, norm, eps, head)
        self.shapes.append((len(x), *result.shape))
        assert result.isfinite().all()
        return result


@pytest.mark.parametrize("num_experts", [0, 4])
def test_the_step_computes_the_given_numbers_of_rows_and_logits(num_experts: int) -> None:
    config = replace(Heads(4, 2, 16).config, num_experts=num_experts, experts_per_token=min(num_experts, 2))
    ops = WatchedOps()
    model = random_model(config, torch.float32, CPU, ops, seed=0)
    run_profile_step(model, num_rows=50, num_logits=7, block_size=16, kv_dtype="float32")
    assert ops.shapes == [(50, 7, 32)]
