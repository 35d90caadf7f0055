"""Slices of matrices are the bytes of their file, read ahead, and packing them gives the panels of the whole matrix."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model import slice_reader
from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.errors import CheckpointError
from model.checkpoint.stored_tensor import StoredTensor
from model.loader import LoadOptions, load_model
from model.ops.interface import packed_bytes
from model.ops.weights import BlockMatrix, BlockStream
from model.slice_reader import SliceReader
from model.stored_weights import NUM_READS, fill_from, read_block_matrix
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
    monkeypatch.setattr(slice_reader, "SLICE_BYTES", slice_bytes)
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


def test_a_file_that_ends_goes_or_cannot_be_read_is_an_error_of_one_line(tmp_path: Path) -> None:
    stored = _stored(random_blocks("Q8_0", 64, 256), tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"file ends within tensor w$"):
        list(SliceReader().read(replace(stored, start=100)))
    unreadable = replace(stored, file=Path("/proc/self/mem"))  # nothing is mapped at its first addresses
    with pytest.raises(CheckpointError, match=r"^/proc/self/mem: tensor w cannot be read: Input/output error$"):
        list(SliceReader().read(unreadable))
    stored.file.unlink()
    with pytest.raises(CheckpointError, match=r"file: tensor w cannot be read: No such file or directory$"):
        list(SliceReader().read(stored))


def test_the_first_tensor_in_order_is_named_when_several_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slices before the fault are given first; a later tensor fails while the first one still waits for its end."""
    monkeypatch.setattr(slice_reader, "SLICE_BYTES", 1)
    matrix, fails = random_blocks("Q8_0", 96, 256), threading.Event()
    first = _stored(matrix, tmp_path / "first")
    end = first.start + first.num_bytes - 1
    with first.file.open("r+b") as file:
        file.truncate(end)
    second = replace(first, name="second", file=tmp_path / "absent")

    def fill(stored: StoredTensor, start: int, content: Tensor) -> None:
        if stored is first and start:
            assert fails.wait(60)
        try:
            fill_from(stored, start, content)
        except CheckpointError:
            fails.set()
            raise

    monkeypatch.setattr(slice_reader, "fill_from", fill)
    reader = SliceReader()
    slices, others = reader.read(first), reader.read(second)
    assert torch.equal(next(slices), matrix.blocks[:32])
    assert torch.equal(next(slices), matrix.blocks[32:64])
    with pytest.raises(CheckpointError, match=r"first ends within tensor w$"):
        next(slices)
    with pytest.raises(CheckpointError, match=r"absent: tensor second cannot be read"):
        next(others)


def test_four_reads_are_under_way_while_a_slice_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the next matrix too, and never more: a reader holds five buffers."""
    monkeypatch.setattr(slice_reader, "SLICE_BYTES", 1)
    matrix = random_blocks("Q8_0", 96, 256)
    stored = _stored(matrix, tmp_path / "file")
    may_go_on, a_read_started = threading.Event(), threading.Semaphore(0)
    started: list[str] = []
    buffers: set[int] = set()

    def fill(tensor: StoredTensor, start: int, content: Tensor) -> None:
        if tensor.file == stored.file:  # an earlier test's reader may still read
            started.append(tensor.name)
            buffers.add(content.data_ptr())
            a_read_started.release()
            assert (tensor.name, start) == ("0", 0) or may_go_on.wait(60)
        fill_from(tensor, start, content)

    monkeypatch.setattr(slice_reader, "fill_from", fill)
    reader = SliceReader()
    slices = [reader.read(replace(stored, name=str(index))) for index in range(3)]
    assert torch.equal(next(slices[0]), matrix.blocks[:32])
    assert all(a_read_started.acquire(timeout=60) for _ in range(1 + NUM_READS))
    assert sorted(started) == ["0", "0", "0", "1", "1"]
    may_go_on.set()
    rest = [torch.cat([rows.clone() for rows in each]) for each in slices]
    assert torch.equal(rest[0], matrix.blocks[32:]) and all(torch.equal(each, matrix.blocks) for each in rest[1:])
    assert len(started) == 9 and len(buffers) == 1 + NUM_READS


def test_slices_that_are_taken_out_of_order_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_reader, "SLICE_BYTES", 1)
    matrix, reader = random_blocks("Q8_0", 320, 256), SliceReader()
    stored = _stored(matrix, tmp_path / "file")
    first, second = reader.read(stored), reader.read(stored)
    for slices in (second, first):
        assert torch.equal(torch.cat([rows.clone() for rows in slices]), matrix.blocks)


def test_a_slice_has_a_panel_for_each_thread_as_far_as_memory_allows(tmp_path: Path) -> None:
    row_bytes, num_rows = 8 << 10, 4096
    file = tmp_path / "file"
    with file.open("wb") as stream:
        stream.truncate(num_rows * row_bytes)
    stored = StoredTensor(file, "w", "BF16", (num_rows, row_bytes // 2), 0, num_rows * row_bytes)
    rows = {threads: len(next(SliceReader(threads).read(stored))) for threads in (1, 16, 64, 128)}
    assert rows == {1: 512, 16: 512, 64: 64 * 32, 128: 3072}


def test_loading_reads_experts_and_head_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only q and k, whose rows are put in another order, and the embedding, which is decoded, are read as a whole."""
    path, whole = tmp_path / "a.gguf", []

    def read(stored: StoredTensor, first: int = 0, count: int | None = None) -> BlockMatrix:
        whole.append(stored.name)
        return read_block_matrix(stored, first, count)

    write_gguf(path, GgufShape())
    monkeypatch.setattr("model.loader.read_block_matrix", read)
    monkeypatch.setattr(slice_reader, "SLICE_BYTES", 9000)
    config, progress = read_config(path)[0], []
    options = LoadOptions(torch.float32, CPU, lambda done, total: progress.append((done, total)))
    loaded = load_model(path, config, native(ISAS[-1]), options)
    assert whole == [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk"]
    assert progress[-1][0] == progress[-1][1] == sum(w.num_bytes for w in read_stored_weights(path, config).values())
    checked = load_model(path, config, native(ISAS[-1]), LoadOptions(torch.float32, CPU, check_values=True))
    assert packed_bytes(checked.weights) == packed_bytes(loaded.weights)
    assert torch.equal(checked.weights.layers[0].ffn.experts.w13, loaded.weights.layers[0].ffn.experts.w13)
    assert torch.equal(checked.weights.head.matrices[0].panels, loaded.weights.head.matrices[0].panels)
