"""The network on Triton kernels: the logits of the reference, and `deterministic` bits in any batch."""

from dataclasses import replace

import pytest
import torch

from model.dummy_weights import random_model
from model.mixtral import Mixtral
from model.ops.interface import Ops
from model.ops.reference.ops import ReferenceOps
from model.ops.triton.ops import TritonOps
from tests.support.kernels.attention_cases import Heads
from tests.support.kernels.paged import teacher_forced
from tests.triton.cases import row_by_row

SEQUENCES = [[3, 7, 1, 9, 12, 5, 8, 8, 2, 30, 11], [4, 4, 1], [17, 2, 9, 26, 13, 6, 7]]


def _model(ops: Ops, num_experts: int, window: int | None) -> Mixtral:
    config = replace(Heads(4, 2, 16, window).config, num_layers=2, num_experts=num_experts, experts_per_token=2)
    return random_model(config, torch.float32, torch.get_default_device(), ops, seed=5)


@pytest.mark.parametrize(("num_experts", "window"), [(4, None), (4, 5), (0, None)])
def test_logits_equal_the_references(num_experts: int, window: int | None) -> None:
    ours = teacher_forced(_model(TritonOps(torch.float32), num_experts, window), SEQUENCES, [3, 1, 7])
    reference = teacher_forced(_model(ReferenceOps(), num_experts, window), SEQUENCES, [3, 1, 7])
    for mine, expected in zip(ours, reference, strict=True):
        assert torch.allclose(mine, expected, atol=2e-4, rtol=1e-4)


def test_deterministic_logits_have_the_same_bits_alone_in_a_batch_and_in_any_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("numpy.matmul", row_by_row)
    model = _model(TritonOps(torch.float32, deterministic=True), 4, 5)
    sequences = [SEQUENCES[0][:7], SEQUENCES[1]]
    together = teacher_forced(model, sequences, [3, 1])
    for expected, sequence, chunk in zip(together, sequences, [7, 2], strict=True):
        [alone] = teacher_forced(model, [sequence], [chunk], seed=chunk)
        assert torch.equal(alone, expected)
