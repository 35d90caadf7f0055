"""Bytes of loaded weights, against the quantized matrices themselves."""

from pathlib import Path

import pytest
import torch

from model.checkpoint.stored_tensor import StoredTensor
from model.checkpoint.tensor_names import EMBEDDING, HEAD, PARTS
from model.checkpoint.weight_sizes import weight_bytes
from model.ops.interface import packed_bytes
from model.ops.quantization import Quantization, quantize

Q_PROJ, GATE = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate.weight"
W13, NORM = "model.layers.0.mlp.experts.gate_up_proj", "model.norm.weight"
SHAPES = {EMBEDDING: (10, 40), Q_PROJ: (20, 40), GATE: (4, 40), W13: (4, 6, 40), NORM: (40,), HEAD: (10, 40)}


def _stored(names: list[str]) -> dict[str, StoredTensor]:
    return {name: StoredTensor(Path("x"), name, "BF16", SHAPES[name], 0, 0) for name in names}


def test_plain_weights_take_the_bytes_of_their_dtype() -> None:
    sizes = weight_bytes(_stored(list(SHAPES)), 2, "none")
    assert set(sizes) == set(PARTS)
    assert sizes == {
        "embedding": 800, "attention": 1600, "ffn": 0, "experts": 1920, "gate": 320, "norms": 80, "head": 800
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantized_weights_take_the_bytes_of_the_definition(kind: Quantization) -> None:
    sizes = weight_bytes(_stored(list(SHAPES)), 4, kind)
    matrices = {"attention": (20, 40), "experts": (4 * 6, 40), "head": (10, 40)}
    for part, shape in matrices.items():
        assert sizes[part] == packed_bytes(quantize(torch.randn(shape), kind)), part
    assert (sizes["embedding"], sizes["gate"], sizes["norms"]) == (1600, 640, 160), "parts that stay in float32"


def test_fp8_takes_as_many_bytes_as_int8() -> None:
    stored = _stored(list(SHAPES))
    assert weight_bytes(stored, 2, "fp8") == weight_bytes(stored, 2, "int8")


def test_a_tied_head_takes_bytes_only_if_it_is_quantized() -> None:
    stored = _stored([EMBEDDING, NORM])
    assert weight_bytes(stored, 2, "none")["head"] == 0
    assert weight_bytes(stored, 2, "int8")["head"] == 10 * (40 + 4)
