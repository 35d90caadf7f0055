"""Matrices that are read while they are packed give the bytes of matrices that are read as a whole."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import model.loader
from model import slice_reader
from model.checkpoint.checkpoint import read_config
from model.checkpoint.errors import CheckpointError
from model.checkpoint.stored_tensor import StoredTensor
from model.cut import Cut
from model.group import Unconnected
from model.loader import LoadOptions, load_model
from model.mixtral import Mixtral
from model.ops.native.ops import NativeOps
from model.ops.quantization import Quantization
from model.pack.network import NetworkTensors
from model.stored_weights import read_weight
from tests.support.checkpoints.mixtral import Shape, edit_tensors, random_model, save_in_layout
from tests.support.kernels.native_cases import ISAS, LIBRARY
from tests.support.kernels.paged import CPU

# Panels that are not full, in w1, w3 (72 rows) and the head (101). q, k and v are not multiples of a panel either.
SHAPE = Shape(dim=80, num_heads=5, num_kv_heads=1, head_dim=16, hidden_dim=72, num_experts=4, num_layers=1)
EXPERT = "model.layers.0.block_sparse_moe.experts.{}.{}.weight"


def _load(path: Path, quantization: Quantization = "none", *, streamed: bool = True, **options: object) -> Mixtral:
    ops = NativeOps(LIBRARY, 2, ISAS[-1], quantization)
    ops.packs_streams = streamed
    dtype = torch.bfloat16
    return load_model(path, read_config(path)[0], ops, LoadOptions(dtype, CPU, **options))  # type: ignore[arg-type]


def _bytes(model: Mixtral) -> dict[str, list[Tensor]]:
    """Return all tensors of a network, packed ones as they lie in memory."""
    found: dict[str, list[Tensor]] = {}
    tensors = NetworkTensors(lambda name, parts: found.setdefault(name, list(parts)))
    tensors.tensor("embedding", model.weights.embedding)
    for index, layer in enumerate(model.weights.layers):
        tensors.layer(index, layer)
    tensors.tensor("norm", model.weights.norm)
    tensors.linear("head", model.weights.head)
    return found


def _assert_equal(model: Mixtral, other: Mixtral) -> None:
    found, expected = _bytes(model), _bytes(other)
    assert found.keys() == expected.keys()
    for name, parts in expected.items():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[name], parts, strict=True)), name


def _converted(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_slices_pack_to_the_bytes_of_whole_matrices(
    quantization: Quantization, dtype: torch.dtype, fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_reader, "SLICE_BYTES", 1)
    path = save_in_layout(random_model(SHAPE), tmp_path, fused=fused)
    edit_tensors(path, _converted(dtype))
    whole = _load(path, quantization, streamed=False)
    _assert_equal(_load(path, quantization), whole)
    _assert_equal(_load(path, quantization, check_values=True), whole)


@pytest.mark.parametrize(
    "shape", [Shape(num_experts=0, dim=64, hidden_dim=96), Shape(dim=64, hidden_dim=96, tied=True)]
)
def test_dense_and_tied_networks_pack_to_the_bytes_of_whole_matrices(shape: Shape, tmp_path: Path) -> None:
    path = save_in_layout(random_model(shape), tmp_path)
    _assert_equal(_load(path), _load(path, streamed=False))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_ranks_slices_pack_to_the_bytes_of_its_rows(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_reader, "SLICE_BYTES", 1)
    path = save_in_layout(random_model(Shape(num_experts=4, dim=128, hidden_dim=160)), tmp_path, fused=bool(rank))
    group = Unconnected(Cut(rank, 2))
    _assert_equal(_load(path, group=group), _load(path, streamed=False, group=group))


def test_only_what_is_no_matrix_and_the_embedding_are_read_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = []

    def read(tensor: StoredTensor, *arguments: object) -> Tensor:
        whole.append(tensor.name)
        return read_weight(tensor, *arguments)  # type: ignore[arg-type]

    path = save_in_layout(random_model(SHAPE), tmp_path)
    monkeypatch.setattr(model.loader, "read_weight", read)
    _load(path)
    names = "input_layernorm", "post_attention_layernorm", "block_sparse_moe.gate"
    assert whole == [
        "model.embed_tokens.weight",
        *(f"model.layers.0.{name}.weight" for name in names),
        "model.norm.weight",
    ]


DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "NaN in w2 of expert 1, and experts of zeros behind it": (
        lambda tensors: (tensors[EXPERT.format(1, "w2")][79, 3].fill_(float("nan")), _clear(tensors, 2, 3)),
        r"experts\.1\.w2\.weight contains NaN or Inf$",
    ),
    "zeros in w3, and NaN in w2 behind it": (
        lambda tensors: (tensors[EXPERT.format(2, "w3")].zero_(), tensors[EXPERT.format(2, "w2")].fill_(float("inf"))),
        r"experts\.2\.w3\.weight has an expert whose weights are all zero$",
    ),
}


def _clear(tensors: dict[str, Tensor], *experts: int) -> list[Tensor]:
    return [tensors[EXPERT.format(expert, "w1")].zero_() for expert in experts]


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("streamed", [False, True])
def test_the_first_bad_weights_in_order_are_named(
    name: str, streamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_reader, "SLICE_BYTES", 1)
    damage, message = DAMAGES[name]
    path = save_in_layout(random_model(SHAPE), tmp_path)
    edit_tensors(path, damage)
    with pytest.raises(CheckpointError, match=message):
        _load(path, streamed=streamed, check_values=True)


def test_a_slice_of_zeros_is_no_expert_of_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_reader, "SLICE_BYTES", 1)
    path = save_in_layout(random_model(SHAPE), tmp_path)
    edit_tensors(path, lambda tensors: tensors[EXPERT.format(0, "w1")][:64].zero_())
    assert load_file(path / "model.safetensors")[EXPERT.format(0, "w1")][64:].any()
    _load(path, check_values=True)
