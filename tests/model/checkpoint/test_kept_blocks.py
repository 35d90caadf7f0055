"""Which weights stay in blocks, and the bytes that they take in memory."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.kept_blocks import KEPT_BLOCK_BYTES, decoded_blocks, kept_in_blocks, name_of_blocks
from model.checkpoint.stored_tensor import StoredTensor
from model.checkpoint.tensor_names import EMBEDDING, HEAD
from model.checkpoint.weight_sizes import weight_bytes
from model.ops.native.packed_weights import BLOCK_FORMATS, PANEL
from model.ops.weights import BLOCK_SIZES
from tests.support.gguf_files import GgufShape, all_of, write_gguf
from tests.support.native_cases import LIBRARY

LAYER = "model.layers.0."
EXPERT = LAYER + "block_sparse_moe.experts."


def _stored(path: Path, shape: GgufShape | None = None, **options: object) -> dict[str, StoredTensor]:
    write_gguf(path / "a.gguf", shape or GgufShape(), **options)  # type: ignore[arg-type]
    config, _ = read_config(path / "a.gguf")
    return dict(read_stored_weights(path / "a.gguf", config))


def test_matrices_with_kernels_are_kept_and_the_rest_is_decoded(tmp_path: Path) -> None:
    stored = _stored(tmp_path)
    kept = kept_in_blocks(stored, KEPT_BLOCK_BYTES)
    decoded = set(stored) - set(kept)
    assert decoded == {EMBEDDING, "model.norm.weight", LAYER + "block_sparse_moe.gate.weight"} | {
        LAYER + f"{name}_layernorm.weight" for name in ("input", "post_attention")
    }
    assert all(kept[name] == stored[name].dtype for name in kept)
    assert name_of_blocks(kept) == "Q4_K+Q8_0+Q5_K+Q6_K", "13, 2, 1 and 1 matrices"
    assert kept_in_blocks(stored, ()) == {} and name_of_blocks({}) == ""
    assert decoded_blocks(stored, kept) == []
    assert decoded_blocks(stored, {}) == ["Q4_K", "Q5_K", "Q6_K", "Q8_0"]


def test_types_without_kernels_are_decoded(tmp_path: Path) -> None:
    stored = _stored(tmp_path, type_of=all_of("Q2_K"))
    assert kept_in_blocks(stored, KEPT_BLOCK_BYTES) == {}
    assert decoded_blocks(stored, {}) == ["Q2_K"]
    plain = _stored(tmp_path, type_of=all_of("F16"))
    assert decoded_blocks(plain, kept_in_blocks(plain, KEPT_BLOCK_BYTES)) == []


def test_experts_of_several_types_are_decoded_one_matrix_at_a_time(tmp_path: Path) -> None:
    stored = _stored(tmp_path)
    stored[EXPERT + "3.w1.weight"] = replace(stored[EXPERT + "3.w1.weight"], dtype="Q5_K")
    kept = kept_in_blocks(stored, KEPT_BLOCK_BYTES)
    assert not [name for name in kept if name.endswith("w1.weight")]
    assert len([name for name in kept if name.endswith(("w2.weight", "w3.weight"))]) == 8


def test_a_tied_head_is_kept_as_a_copy_of_the_embedding(tmp_path: Path) -> None:
    stored = _stored(tmp_path, GgufShape(tied=True))
    kept = kept_in_blocks(stored, KEPT_BLOCK_BYTES)
    assert HEAD not in stored and kept[HEAD] == stored[EMBEDDING].dtype
    sizes = weight_bytes(stored, 2, "none", kept)
    assert sizes["head"] == 101 * 148 and sizes["embedding"] == 101 * 256 * 2


@pytest.mark.parametrize("block_type", KEPT_BLOCK_BYTES)
def test_kept_blocks_take_the_bytes_of_the_librarys_panels(block_type: str) -> None:
    numbers, _ = BLOCK_SIZES[block_type]
    panel = LIBRARY.call.smoe_panel_size(BLOCK_FORMATS[block_type], 512)
    assert KEPT_BLOCK_BYTES[block_type] == panel / PANEL / (512 // numbers)
