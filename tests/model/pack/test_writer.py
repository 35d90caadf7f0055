"""Tensors are written with their sums, each at the beginning of a page."""

import fcntl
import hashlib
from pathlib import Path

import pytest
import torch

from model.checkpoint.config_file import load_config
from model.checkpoint.errors import CheckpointError
from model.checkpoint.pack.header import PAGE_BYTES, WEIGHTS_NAME, header_space
from model.checkpoint.pack.side_files import copy_side_files
from model.pack.writer import TensorWriter, new_pack
from tests.support.paths import DEMO


def test_tensors_are_written_behind_the_header_at_pages(tmp_path: Path) -> None:
    config, _ = load_config(DEMO)
    numbers, parts = torch.arange(6.0).view(2, 3).bfloat16(), [torch.ones(5000).byte(), torch.zeros(1).byte()]
    with (tmp_path / "w").open("w+b") as stream:
        writer = TensorWriter(stream, config)
        writer.write("numbers", [numbers])
        writer.write("parts", parts)
        stream.flush()
        content = (tmp_path / "w").read_bytes()
    first, second = writer.tensors["numbers"], writer.tensors["parts"]
    start = header_space(config)
    assert (first.start, first.num_bytes, first.dtype, first.shape) == (start, 12, "bfloat16", (2, 3))
    assert (second.start, second.num_bytes, second.shape) == (start + PAGE_BYTES, 5001, (5001,))
    assert content[start : start + 12] == numbers.view(torch.uint8).numpy().tobytes()
    assert content[second.start : second.start + 5001] == bytes([1] * 5000 + [0])
    assert second.sha256 == hashlib.sha256(bytes([1] * 5000 + [0])).hexdigest()
    assert len(content) == writer.file_bytes and writer.file_bytes % PAGE_BYTES == 0


def test_a_pack_gets_its_name_while_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def rename_under_lock(partial: Path, target: Path) -> Path:
        with (partial / WEIGHTS_NAME).open("ab") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return rename(partial, target)

    monkeypatch.setattr(Path, "rename", rename_under_lock)
    with new_pack(tmp_path / "pack") as (_, stream):
        stream.write(b"weights")
    assert (tmp_path / "pack" / WEIGHTS_NAME).read_bytes() == b"weights"


def test_a_side_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with (
        pytest.raises(CheckpointError, match=f"^{DEMO}/[a-z_.]+ cannot be read: Permission denied$"),
        new_pack(tmp_path / "pack") as (folder, _),
    ):
        copy_side_files(DEMO, folder)
    assert not list(tmp_path.iterdir())
