"""GGUF files that are valid, but unlike those that llama.cpp's programs write by default, are read to the same bits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.stored_weights import read_weight
from tests.support.checkpoints.gguf import GgufShape, Type, all_of, iq2_m, q4_k_m, write_gguf

SHAPE = GgufShape(num_layers=3, num_experts=2)
TypeOf = Callable[[str], Type]
# What llama-quantize and converters add, and arrays of every kind.
MORE_FIELDS: dict[str, Any] = {
    "general.name": "naïve \u2581",
    "general.tags": ["a", "", "ünaligned", "moe"],
    "general.quantization_version": 2,
    "quantize.imatrix.file": "imatrix.dat",
    "quantize.imatrix.dataset": "calibration.txt",
    "quantize.imatrix.entries_count": 224,
    "someone.flags": [True, False, True],
    "someone.numbers": [0.5, -1.0],
    "llama.expert_weights_scale": 1.0,
    "llama.rope.scaling.type": "none",
    "llama.rope.scaling.factor": 4.0,  # means nothing beside the type none
}


def with_types(**kinds: str) -> TypeOf:
    """Give the tensors whose names contain a key this type, and the others those of Q4_K_M."""

    def type_of(name: str) -> Type:
        return next((Type[kind] for mark, kind in kinds.items() if mark in name), q4_k_m(name))

    return type_of


def by_layer(name: str) -> Type:
    """Give each layer types of its own, as rules for single tensors do (--tensor-type)."""
    if "norm" in name or "gate_inp" in name:
        return Type.F32
    kinds = {"blk.0.": Type.IQ4_XS, "blk.1.ffn_down": Type.Q5_1, "blk.1.": Type.F16, "blk.2.attn": Type.Q2_K}
    return next((kind for mark, kind in kinds.items() if name.startswith(mark)), Type.Q3_K)


def pure(name: str) -> Type:
    """Give every matrix, embedding and head too, one type (--pure)."""
    return all_of("Q5_K")(name)


FILES: dict[str, tuple[GgufShape, TypeOf]] = {
    "aligned to 64": (replace(SHAPE, alignment=64), q4_k_m),
    "aligned to 4096": (replace(SHAPE, alignment=4096), q4_k_m),
    "aligned to 8": (replace(SHAPE, alignment=8), q4_k_m),
    "any order": (replace(SHAPE, shuffled=True), q4_k_m),
    "any order, one tensor per expert": (replace(SHAPE, shuffled=True, merged=False), q4_k_m),
    "any order, in parts": (replace(SHAPE, shuffled=True, merged=False, tensors_per_part=7), q4_k_m),
    "a first part without tensors": (replace(SHAPE, tensors_per_part=20, empty_first_part=True), q4_k_m),
    "more fields": (replace(SHAPE, fields=MORE_FIELDS), q4_k_m),
    "scaled by 1": (replace(SHAPE, fields={"llama.rope.scale_linear": 1.0}), q4_k_m),
    "F16 norms and gate": (SHAPE, with_types(norm="F16", gate_inp="F16")),
    "BF16 norms and gate": (SHAPE, with_types(norm="BF16", gate_inp="BF16")),
    "a gate in blocks": (SHAPE, with_types(gate_inp="Q5_1")),
    "an embedding in blocks": (SHAPE, with_types(token_embd="IQ4_NL", **{"output.weight": "BF16"})),
    "a tied embedding of floats": (replace(SHAPE, tied=True), with_types(token_embd="F16")),
    "a type per layer": (SHAPE, by_layer),
    "four dimensions": (replace(SHAPE, num_dims=4), q4_k_m),
    "one expert": (replace(SHAPE, num_experts=1, fields={"llama.expert_used_count": 1}), q4_k_m),
    "one type": (SHAPE, pure),
    "a tied head in one type": (replace(SHAPE, tied=True, num_experts=0), pure),
    "code books": (SHAPE, iq2_m),
    "code books, one tensor per expert, in parts": (replace(SHAPE, merged=False, tensors_per_part=9), iq2_m),
    "code books, four dimensions, a tied head": (replace(SHAPE, num_dims=4, tied=True), iq2_m),
}


@pytest.mark.parametrize("name", FILES)
def test_weights_are_those_of_the_gguf_package(name: str, tmp_path: Path) -> None:
    shape, type_of = FILES[name]
    expected = write_gguf(tmp_path / "a.gguf", shape, type_of)
    files = sorted(tmp_path.glob("*.gguf"))
    if list(FILES).index(name) % 2:
        _set_version_2(files)
    config, _ = read_config(files[0])
    found = read_stored_weights(files[0], config)
    assert set(found) == set(expected) and config.rope_theta == 1e6
    for each, weight in expected.items():
        assert np.array_equal(read_weight(found[each], torch.float32).float().numpy(), weight), each


def _set_version_2(files: list[Path]) -> None:
    """Version 3, which the package writes, differs in nothing else."""
    for file in files:
        with file.open("r+b") as stream:
            stream.seek(4)
            stream.write((2).to_bytes(4, "little"))
