"""Bytes of packed weights."""

import torch

from model.ops.interface import FfnWeights, packed_bytes
from model.ops.reference.ops import ReferenceOps


def test_packed_bytes_counts_each_tensor_of_nested_weights() -> None:
    ops = ReferenceOps()
    weight = torch.zeros(6, 4, dtype=torch.bfloat16)
    assert packed_bytes(ops.pack_linear(weight)) == 48
    assert packed_bytes([weight, (weight, 3)]) == 96


def test_packed_bytes_of_experts_are_those_of_the_gate_in_float32_and_of_three_matrices_each() -> None:
    w1, w2 = torch.zeros(10, 6, dtype=torch.bfloat16), torch.zeros(6, 10, dtype=torch.bfloat16)
    packed = ReferenceOps().pack_moe(torch.zeros(3, 6), (FfnWeights(w1, w1, w2) for _ in range(3)))
    assert packed_bytes(packed) == 4 * 3 * 6 + 3 * 3 * 2 * 60
