"""Checksums are written for each file of a checkpoint, and errors are the engine's."""

import hashlib
from pathlib import Path

import pytest

from engine.capacity.checkpoint_files import write_manifest
from engine.errors import EngineConfigError


def test_each_file_gets_its_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    path, num_files = write_manifest(tmp_path)
    assert num_files == 2
    lines = dict(reversed(line.split(maxsplit=1)) for line in path.read_text().splitlines())
    assert {name.lstrip("*"): digest for name, digest in lines.items()} == {
        "config.json": hashlib.sha256(b"{}").hexdigest(),
        "model.safetensors": hashlib.sha256(b"weights").hexdigest(),
    }


def test_a_missing_directory_is_an_error_of_the_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineConfigError, match="absent"):
        write_manifest(tmp_path / "absent")
