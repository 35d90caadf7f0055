"""Slices of a GGUF file's matrices are its bytes, and packing them gives the panels of the whole matrix."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import block_slices
from model.block_slices import SliceReader
from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.errors import CheckpointError
from model.checkpoint.stored_tensor import StoredTensor
from model.loader import LoadOptions, load_model
from model.ops.interface import packed_bytes
from model.ops.weights import BlockMatrix, BlockStream
from model.stored_weights import read_block_matrix
from tests.support.checkpoints.block_matrices import random_blocks
from tests.support.checkpoints.gguf import GgufShape, write_gguf
from tests.support.kernels.native_cases import ISAS, native
from tests.support.kernels.paged import CPU


def _stored(matrix: BlockMatrix, path: Path) -> StoredTensor:
    """Write the matrix behind a few other bytes."""
    path.write_bytes(b"other" + matrix.blocks.numpy().tobytes() + b"more")
    return StoredTensor(path, "w", matrix.format, matrix.shape, 5, matrix.blocks.nbytes)


@pytest.mark.parametrize("slice_bytes", [1, 32 * 144, 70 * 144, 1 << 20])
def test_packed_slices_are_the_packed_matrix(slice_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_slices, "SLICE_BYTES", slice_bytes)
    matrix, reader, ops = random_blocks("Q4_K", 203, 256), SliceReader(), native(ISAS[-1])
    stored = _stored(matrix, tmp_path / "file")
    for _ in range(2):  # the buffers are used again
        assert torch.equal(torch.cat([rows.clone() for rows in reader.read(stored)]), matrix.blocks)
    counts = [len(rows) for rows in reader.read(stored)]
    assert sum(counts) == 203 and all(count % 32 == 0 for count in counts[:-1])
    packed = ops.pack_linear(BlockStream("Q4_K", (203, 256), reader.read(stored)))
    assert torch.equal(packed.matrices[0].panels, ops.pack_linear(matrix).matrices[0].panels)
    both = ops.pack_linear(*(BlockStream("Q4_K", (203, 256), reader.read(stored)) for _ in range(2)))
    assert torch.equal(both.matrices[0].panels, ops.pack_linear(matrix, matrix).matrices[0].panels)


def test_a_file_that_ends_or_goes_is_an_error_of_one_line(tmp_path: Path) -> None:
    stored = _stored(random_blocks("Q8_0", 64, 256), tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"file ends within tensor w$"):
        list(SliceReader().read(replace(stored, start=100)))
    stored.file.unlink()
    with pytest.raises(CheckpointError, match=r"file: tensor w cannot be read: No such file or directory$"):
        list(SliceReader().read(stored))


def test_loading_reads_experts_and_head_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only q and k, whose rows are put in another order, and the embedding, which is decoded, are read as a whole."""
    path, whole = tmp_path / "a.gguf", []

    def read(stored: StoredTensor, first: int = 0, count: int | None = None) -> BlockMatrix:
        whole.append(stored.name)
        return read_block_matrix(stored, first, count)

    write_gguf(path, GgufShape())
    monkeypatch.setattr("model.loader.read_block_matrix", read)
    monkeypatch.setattr(block_slices, "SLICE_BYTES", 9000)
    config, progress = read_config(path)[0], []
    options = LoadOptions(torch.float32, CPU, lambda done, total: progress.append((done, total)))
    loaded = load_model(path, config, native(ISAS[-1]), options)
    assert whole == [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk"]
    assert progress[-1][0] == progress[-1][1] == sum(w.num_bytes for w in read_stored_weights(path, config).values())
    checked = load_model(path, config, native(ISAS[-1]), LoadOptions(torch.float32, CPU, check_values=True))
    assert packed_bytes(checked.weights) == packed_bytes(loaded.weights)
    assert torch.equal(checked.weights.layers[0].ffn.experts.w13, loaded.weights.layers[0].ffn.experts.w13)
    assert torch.equal(checked.weights.head.matrices[0].panels, loaded.weights.head.matrices[0].panels)
