"""Packed experts are the packed matrices of each, one after another, and take the bytes that the plan counts."""

from pathlib import Path

import pytest
import torch

from model.checkpoint.stored_tensor import StoredTensor
from model.checkpoint.weight_sizes import PACKED_BLOCKS, weight_bytes
from model.ops.interface import FfnWeights
from model.ops.native.packed_weights import NativeExperts
from model.ops.quantization import Quantization
from model.ops.weights import BLOCK_SIZES
from tests.support.checkpoints.block_matrices import random_blocks
from tests.support.kernels.native_cases import ISAS, native

KINDS: list[Quantization] = ["none", "lossless", "int8", "int4"]
DIM, HIDDEN = 64, 96


def _experts(count: int, kind: Quantization = "none") -> list[FfnWeights]:
    generator = torch.Generator().manual_seed(0)
    w13, w2 = (torch.randn(count, 2, HIDDEN, DIM, generator=generator), torch.randn(count, DIM, HIDDEN))
    if kind == "lossless":
        w13, w2 = w13.bfloat16(), w2.bfloat16()
    return [FfnWeights(*w13[index], w2[index]) for index in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_experts_lie_one_after_another_as_each_is_packed_alone(kind: Quantization) -> None:
    ops, experts = native(ISAS[-1], quantization=kind), _experts(3, kind)
    together = ops.pack_moe(torch.zeros(3, DIM), iter(experts)).experts
    alone = [ops.pack_ffn(expert) for expert in experts]
    assert torch.equal(together.w13, torch.cat([one.w13 for one in alone]))
    assert torch.equal(together.w2, torch.cat([one.w2 for one in alone]))
    assert all(
        torch.equal(one.w2[0], ops.pack_linear(expert.w2).matrices[0].panels)
        for one, expert in zip(alone, experts, strict=True)
    )
    sizes = (together.formats, together.num_experts, together.dim, together.hidden_dim)
    assert sizes == (alone[0].formats, 3, DIM, HIDDEN)


def test_the_gate_stays_in_float32() -> None:
    gate = torch.randn(2, DIM).bfloat16()
    packed = native(ISAS[0], quantization="int8").pack_moe(gate, iter(_experts(2)))
    assert packed.gate.dtype == torch.float32 and torch.equal(packed.gate, gate.float())


@pytest.mark.parametrize("kind", KINDS)
def test_full_panels_take_the_bytes_that_are_planned(kind: Quantization) -> None:
    packed: NativeExperts = native(ISAS[0], quantization=kind).pack_ffn(_experts(1, kind)[0])
    shapes = {"mlp.gate_proj": (HIDDEN, DIM), "mlp.up_proj": (HIDDEN, DIM), "mlp.down_proj": (DIM, HIDDEN)}
    stored = {name: StoredTensor(Path("x"), name, "F32", shape, 0, 0) for name, shape in shapes.items()}
    stored["model.embed_tokens.weight"] = StoredTensor(Path("x"), "model.embed_tokens.weight", "F32", (1, DIM), 0, 0)
    assert packed.w13.nbytes + packed.w2.nbytes == weight_bytes(stored, 4, kind)["ffn"]


@pytest.mark.parametrize("block_format", BLOCK_SIZES)
def test_full_panels_in_blocks_take_the_bytes_that_are_planned(block_format: str) -> None:
    name, (outputs, inputs) = "mlp.up_proj", (64, 512)
    matrix = random_blocks(block_format, outputs, inputs)
    packed = native(ISAS[0]).pack_linear(matrix)
    stored = {name: StoredTensor(Path("x"), name, block_format, (outputs, inputs), 0, matrix.blocks.nbytes)}
    stored["lm_head.weight"] = StoredTensor(Path("x"), "lm_head.weight", "F32", (1, 1), 0, 4)
    assert packed.matrices[0].panels.nbytes == weight_bytes(stored, 4, "none", PACKED_BLOCKS)["ffn"]
    assert set(PACKED_BLOCKS) == native(ISAS[0]).block_formats
