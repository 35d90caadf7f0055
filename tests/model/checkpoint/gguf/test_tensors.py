"""Weights of GGUF files equal those that the `gguf` package decodes, in Hugging Face's names and order of rows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.errors import CheckpointError
from model.stored_weights import read_weight
from tests.support.checkpoints.gguf import GgufShape, Type, all_of, q4_k_m, write_gguf

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
TYPES += ["IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS"]


def _read(path: Path) -> dict[str, torch.Tensor]:
    stored = read_stored_weights(path, read_config(path)[0])
    return {name: read_weight(weight, torch.float32).float() for name, weight in stored.items()}


def _assert_equal(found: dict[str, torch.Tensor], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    assert [name for name, weight in expected.items() if not np.array_equal(found[name].numpy(), weight)] == []


@pytest.mark.parametrize("merged", [True, False])
def test_merged_and_per_expert_files_give_the_same_bits(merged: bool, tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "a.gguf", GgufShape(num_layers=2, merged=merged), q4_k_m)
    _assert_equal(_read(tmp_path / "a.gguf"), expected)


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_read(name: str, tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "a.gguf", GgufShape(num_experts=2), all_of(name))
    _assert_equal(_read(tmp_path / "a.gguf"), expected)


@pytest.mark.parametrize("shape", [GgufShape(num_experts=0), GgufShape(tied=True), GgufShape(num_kv_heads=4)])
def test_other_networks_are_read(shape: GgufShape, tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "a.gguf", shape)
    assert ("lm_head.weight" in expected) is not shape.tied
    _assert_equal(_read(tmp_path / "a.gguf"), expected)


def test_a_part_of_the_rows_is_read(tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "a.gguf", GgufShape())
    name = "model.layers.0.block_sparse_moe.experts.3.w2.weight"
    stored = read_stored_weights(tmp_path / "a.gguf", read_config(tmp_path / "a.gguf")[0])[name]
    assert np.array_equal(read_weight(stored, torch.float32, 100, 7).numpy(), expected[name][100:107])


DEFECTS = {
    "shape": (GgufShape(fields={"llama.feed_forward_length": 512}), r"ffn_gate_exps\.weight' has shape \[256, 256\]"),
    "missing layer": (GgufShape(fields={"llama.block_count": 2}), r"tensor blk\.1\.attn_norm\.weight is missing"),
    "more layers": (
        GgufShape(num_layers=2, fields={"llama.block_count": 1}),
        r"'blk\.1\.attn_q\.weight' does not belong",
    ),
    "experts": (
        GgufShape(fields={"llama.expert_count": 8}),
        r"ffn_gate_inp\.weight' has shape|the model has 8 experts",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_tensors_that_contradict_the_config_are_refused(name: str, tmp_path: Path) -> None:
    shape, pattern = DEFECTS[name]
    write_gguf(tmp_path / "a.gguf", shape)
    with pytest.raises(CheckpointError, match=pattern):
        read_stored_weights(tmp_path / "a.gguf", read_config(tmp_path / "a.gguf")[0])


def test_the_types_of_the_mix_differ(tmp_path: Path) -> None:
    assert {q4_k_m(name) for name in ("attn_k", "attn_output", "output.weight", "attn_norm", "ffn_up")} == {
        *(Type.Q8_0, Type.Q5_K, Type.Q6_K, Type.F32, Type.Q4_K)
    }
