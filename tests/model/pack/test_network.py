"""A network of tensors that were written by name has the matrices, formats and orders of the one that was split."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint.errors import CheckpointError
from model.checkpoint.pack.header import PAGE_BYTES
from model.config import MIXTRAL, ModelConfig
from model.mixtral import LayerWeights, MixtralWeights
from model.ops.interface import FfnWeights
from model.ops.weights import BlockMatrix, groups_with_zeros
from model.pack.network import NetworkTensors, StoredNetwork
from tests.support.kernels.native_cases import ISAS, native

DIM, HIDDEN, EXPERTS, VOCAB = 64, 96, 3, 70
CONFIG = ModelConfig(
    architecture=MIXTRAL,
    vocab_size=VOCAB,
    dim=DIM,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    hidden_dim=HIDDEN,
    num_experts=EXPERTS,
    experts_per_token=2,
    window=None,
    context_len=64,
    rope_theta=1e4,
    norm_eps=1e-5,
    tied_head=False,
    dtype="float32",
    bos_token_id=1,
    eos_token_ids=(2,),
)


def matrix(outputs: int, inputs: int, order: Tensor | None) -> BlockMatrix:
    """Return a random matrix in groups, in an order of its inputs."""
    codes = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
    groups = outputs, inputs // 32
    blocks = groups_with_zeros(codes, torch.rand(groups), torch.randint(0, 16, groups), 4)
    return BlockMatrix(blocks.format, blocks.blocks, order)


def order_of(size: int) -> Tensor:
    return torch.randperm(size).int()


def ffn(*, is_shared: bool) -> FfnWeights:
    first = order_of(DIM)
    third = first.clone() if is_shared else order_of(DIM)
    return FfnWeights(matrix(HIDDEN, DIM, first), matrix(HIDDEN, DIM, third), matrix(DIM, HIDDEN, order_of(HIDDEN)))


def network() -> MixtralWeights:
    """Return weights whose queries are in another format than keys and values, and out of order."""
    torch.manual_seed(0)
    ops = native(ISAS[-1])
    experts = [ffn(is_shared=True), ffn(is_shared=False), ffn(is_shared=True)]
    layer = LayerWeights(
        attention_norm=torch.rand(DIM),
        qkv=ops.pack_linear(matrix(64, DIM, order_of(DIM)), torch.rand(32, DIM), torch.rand(32, DIM)),
        output=ops.pack_linear(matrix(DIM, 64, None)),
        ffn_norm=torch.rand(DIM),
        ffn=ops.pack_moe(torch.rand(EXPERTS, DIM), iter(experts)),
    )
    embedding = torch.rand(VOCAB, DIM).half()
    return MixtralWeights(embedding, [layer], torch.rand(DIM), ops.pack_linear(torch.rand(VOCAB, DIM)))


class Memory:
    """Tensors one behind another at pages of one piece of memory, as in a file."""

    def __init__(self) -> None:
        self._bytes = torch.zeros(1 << 20, dtype=torch.uint8)
        self._used = 0
        self.tensors: dict[str, Tensor] = {}

    def write(self, name: str, parts: Sequence[Tensor]) -> None:
        content = torch.cat([part.contiguous().flatten().view(torch.uint8) for part in parts])
        place = self._bytes[self._used : self._used + len(content)]
        place.copy_(content)
        whole = place.view(parts[0].dtype)
        self.tensors[name] = whole.view(parts[0].shape) if len(parts) == 1 else whole
        self._used += -(-len(content) // PAGE_BYTES) * PAGE_BYTES


def split(weights: MixtralWeights) -> tuple[dict[str, Tensor], dict[str, Any]]:
    memory = Memory()
    parts = NetworkTensors(memory.write)
    parts.tensor("embedding", weights.embedding)
    parts.layer(0, weights.layers[0])
    parts.tensor("norm", weights.norm)
    parts.linear("head", weights.head)
    return memory.tensors, parts.matrices


def joined(tensors: dict[str, Tensor], matrices: dict[str, Any]) -> MixtralWeights:
    return StoredNetwork(CONFIG, tensors, matrices, native(ISAS[-1]).panel_size).weights()


def assert_equal(one: Any, other: Any) -> None:
    """Compare dataclasses, lists and tensors, bit by bit."""
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    elif is_dataclass(one):
        assert type(one) is type(other)
        for field in fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name))
    else:
        assert one == other


def test_a_network_is_joined_as_it_was_split() -> None:
    weights = network()
    found = joined(*split(weights))
    assert_equal(weights, found)
    orders = found.layers[0].ffn.experts.orders
    assert [order3 is order1 for order1, order3, _ in orders] == [True, False, True]
    assert len(found.layers[0].qkv.matrices) == 2


@pytest.mark.parametrize(
    "name", ["embedding", "norm", "head.0", "layers.0.qkv.1", "layers.0.gate", "layers.0.experts.2"]
)
def test_a_tensor_that_is_missing_or_of_another_size_is_named(name: str) -> None:
    tensors, matrices = split(network())
    with pytest.raises(CheckpointError, match=rf"the pack is damaged: tensor {name} is missing$"):
        joined({other: tensor for other, tensor in tensors.items() if other != name}, matrices)
    shape = list(tensors[name].shape)
    with pytest.raises(CheckpointError, match=rf"tensor {name} has the shape .*, not \[{shape[0]}"):
        joined(tensors | {name: tensors[name][..., :-1]}, matrices)


def change(described: dict[str, Any], name: str, **values: Any) -> dict[str, Any]:
    return described | {name: described[name] | values}


def test_what_the_kernels_would_read_without_checks_is_refused() -> None:
    """A pack may come from a stranger: its checksums are then as wrong as it likes."""
    tensors, matrices = split(network())
    order = tensors["layers.0.experts.0.w1.order"]
    wrong: list[tuple[dict[str, Tensor], dict[str, Any], str]] = [
        (tensors | {"layers.0.experts.0.w1.order": order + 1}, matrices, "does not name each input once"),
        (tensors | {"layers.0.ffn_norm": tensors["layers.0.ffn_norm"].bfloat16()}, matrices, "has the type torch.bf"),
        (tensors | {"embedding": tensors["embedding"].double()}, matrices, "embedding has the type torch.float64"),
        (tensors | {"layers.0.experts.1": tensors["layers.0.experts.1"].clone()}, matrices, "not at equal distances"),
        (tensors, change(matrices, "layers.0.experts", formats=["Q4_K"] * 3), "64 inputs are no whole blocks of Q4_K"),
        (tensors, change(matrices, "layers.0.experts", formats=["Q9"] * 3), "are not described"),
        (tensors, change(matrices, "head", matrices=[]), "head has 0 outputs, not 70"),
        (tensors, change(matrices, "head", matrices=[3]), "are not described"),
        (tensors, {}, "does not describe layers.0.qkv"),
    ]
    for changed, described, message in wrong:
        with pytest.raises(CheckpointError, match=message):
            joined(changed, described)
