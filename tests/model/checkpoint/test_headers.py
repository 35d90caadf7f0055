"""Files that are not the expected safetensors files raise a CheckpointError of one line that names the file."""

import errno
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint.errors import CheckpointError
from model.checkpoint.headers import read_headers
from tests.support.checkpoints.mixtral import write_index

FILE = "model.safetensors"
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5, dtype=torch.bfloat16), "c": torch.zeros(1)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / FILE, metadata={"format": "pt"})
    return tmp_path


def _shard(path: Path) -> dict[str, dict[str, Tensor]]:
    """Split the single file in two with an index; return the shards' tensors."""
    (path / FILE).unlink()
    shards = {"a.safetensors": {"a": TENSORS["a"]}, "b.safetensors": {"b": TENSORS["b"], "c": TENSORS["c"]}}
    for file, shard in shards.items():
        save_file(shard, path / file)
    write_index(path, {name: file for file, shard in shards.items() for name in shard})
    return shards


def _assert_refused(path: Path, pattern: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_headers(path)
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert "\n" not in message and len(message) < 600


def test_the_position_of_each_tensor_is_that_of_its_bytes(checkpoint: Path) -> None:
    content = (checkpoint / FILE).read_bytes()
    headers = read_headers(checkpoint)
    assert {name: (h.dtype, h.shape) for name, h in headers.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (5,)),
        "c": ("F32", (1,)),
    }
    for name, header in headers.items():
        expected = TENSORS[name].view(torch.uint8).numpy().tobytes()
        assert content[header.start : header.start + header.num_bytes] == expected


def test_shards_have_the_tensors_of_the_single_file(checkpoint: Path) -> None:
    single = {name: (h.dtype, h.shape) for name, h in read_headers(checkpoint).items()}
    _shard(checkpoint)
    assert {name: (h.dtype, h.shape) for name, h in read_headers(checkpoint).items()} == single


def _with_header(header: bytes, rest: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + rest


CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "pickle": (pickle.dumps({"model.norm.weight": [1.0] * 100}), "pickled"),
    "zipped torch file": (b"PK\x03\x04" + b"\0" * 100, "pickled"),
    "random": (bytes(range(1, 200)), "damaged or not a safetensors"),
    "four bytes": (b"\x01\x00\x00\x00", "damaged or not a safetensors"),
    "header beyond the end": ((1000).to_bytes(8, "little") + b"{}", "damaged or not a safetensors"),
    "header is no JSON": (_with_header(b"{hello"), "damaged or not a safetensors"),
    "unknown dtype": (
        _with_header(b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
        "damaged or not a safetensors",
    ),
    "offsets that overlap": (
        _with_header(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}',
            b"\0" * 6,
        ),
        "damaged or not a safetensors",
    ),
    "shape unlike its bytes": (
        _with_header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"\0" * 4),
        "damaged or not a safetensors",
    ),
    "shape that overflows": (
        _with_header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,4]}}', b"\0" * 4),
        "damaged or not a safetensors",
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_is_no_safetensors_file_is_refused(name: str, checkpoint: Path) -> None:
    content, pattern = CONTENTS[name]
    (checkpoint / FILE).write_bytes(content)
    _assert_refused(checkpoint, pattern)


@pytest.mark.parametrize("num_bytes", [-1, 1])
def test_a_file_too_short_or_long_by_one_byte_is_refused(num_bytes: int, checkpoint: Path) -> None:
    content = (checkpoint / FILE).read_bytes()
    (checkpoint / FILE).write_bytes(content[:-1] if num_bytes < 0 else content + b"\0")
    _assert_refused(checkpoint, f"{FILE} is damaged")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_by_name(name: str, checkpoint: Path) -> None:
    (checkpoint / FILE).rename(checkpoint / name)
    _assert_refused(checkpoint, f"{name}' holds pickled weights")


def test_mlx_files_of_2023_are_refused_by_name(checkpoint: Path) -> None:
    (checkpoint / FILE).rename(checkpoint / "weights.00.npz")
    _assert_refused(checkpoint, r"weights\.00\.npz' holds NumPy arrays.* use a version with safetensors")


def test_no_weights_at_all_are_refused(checkpoint: Path) -> None:
    (checkpoint / FILE).unlink()
    _assert_refused(checkpoint, f"{FILE} is missing")


def _denied(path: Path) -> bool:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_directory_that_cannot_be_listed_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkpoint / FILE).unlink()
    monkeypatch.setattr(Path, "iterdir", _denied)
    _assert_refused(checkpoint, f"{FILE} is missing in a directory that cannot be listed: Permission denied$")


def test_a_link_into_a_directory_of_another_user_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", _denied)
    _assert_refused(checkpoint, "cannot be read: Permission denied$")


def test_shards_without_an_index_are_refused(checkpoint: Path) -> None:
    (checkpoint / FILE).rename(checkpoint / "model-00001-of-00002.safetensors")
    _assert_refused(checkpoint, r"model-00001-of-00002.safetensors.*no model\.safetensors\.index\.json")


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    _shard(checkpoint)
    (checkpoint / "b.safetensors").unlink()
    _assert_refused(checkpoint, "b.safetensors is missing, though")


def test_a_tensor_in_two_shards_is_refused(checkpoint: Path) -> None:
    shards = _shard(checkpoint)
    save_file(shards["b.safetensors"] | {"a": TENSORS["a"]}, checkpoint / "b.safetensors")
    _assert_refused(checkpoint, "tensor a is in .*a.safetensors and again in .*b.safetensors")


def test_swapped_shards_are_refused(checkpoint: Path) -> None:
    _shard(checkpoint)
    first, second = (load_file(checkpoint / name) for name in ("a.safetensors", "b.safetensors"))
    save_file(first, checkpoint / "b.safetensors")
    save_file(second, checkpoint / "a.safetensors")
    _assert_refused(checkpoint, "lists tensor .* which does not contain it")


@pytest.mark.parametrize(
    "weight_map", [None, {}, [], {"a": 7}, {"a": "../x.safetensors"}, {"a": "/etc/passwd"}, {"a": "b.bin"}]
)
def test_an_index_that_leads_elsewhere_is_refused(weight_map: object, checkpoint: Path) -> None:
    (checkpoint / FILE).unlink()
    write_index(checkpoint, weight_map)
    _assert_refused(checkpoint, "index.json.*(no weight_map|not the name)")


def test_a_single_file_comes_before_the_index_of_parts_that_were_there_before_it(checkpoint: Path) -> None:
    """As in transformers, which leaves the index where it saves one file into the folder."""
    older = {"a": torch.zeros(2, 3), "b": torch.zeros(5), "c": torch.zeros(1)}
    for is_complete in (True, False):
        if is_complete:
            save_file(older, checkpoint / "old.safetensors")
        write_index(checkpoint, dict.fromkeys(older, "old.safetensors"))
        assert {header.file.name for header in read_headers(checkpoint).values()} == {FILE}
        (checkpoint / "old.safetensors").unlink(missing_ok=True)
