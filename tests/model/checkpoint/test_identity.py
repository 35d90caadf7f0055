"""model/checkpoint/identity.py: replaced files change the identity, untouched and copied ones do not."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf.file import read_file
from model.checkpoint.headers import read_headers
from model.checkpoint.identity import CheckpointIdentity, contents_digest, identify
from model.checkpoint.manifest import MANIFEST_NAME, write_manifest
from tests.support.checkpoints.gguf import GgufShape, write_gguf
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_random_checkpoint(Shape(), tmp_path / "first")
    return tmp_path / "first"


def identity_of(directory: Path) -> CheckpointIdentity:
    return identify(read_headers(directory).values())


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def replace_keeping_times(file: Path) -> None:
    """Put another file of the same size, header and times in its place: only the inode differs."""
    stat, other = file.stat(), file.with_name("other")
    shutil.copy(file, other)
    flip_last_byte(other)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)


def touch(file: Path) -> None:
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


@pytest.mark.parametrize("change", [flip_last_byte, replace_keeping_times, touch])
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("is_listed", [False, True])
def test_each_way_to_replace_a_file_changes_the_files_digest(
    checkpoint: Path, change: Callable[[Path], None], name: str, is_listed: bool
) -> None:
    if is_listed:
        write_manifest(checkpoint)
    before = identity_of(checkpoint)
    assert identity_of(checkpoint) == before
    change(checkpoint / name)
    assert identity_of(checkpoint).files != before.files


def test_copies_with_a_list_of_sums_have_equal_contents_and_other_weights_have_not(
    checkpoint: Path, tmp_path: Path
) -> None:
    write_manifest(checkpoint)
    shutil.copytree(checkpoint, tmp_path / "copy")
    first, copy = identity_of(checkpoint), identity_of(tmp_path / "copy")
    assert first.contents == copy.contents and first.files != copy.files
    flip_last_byte(tmp_path / "copy" / WEIGHTS)
    write_manifest(tmp_path / "copy")
    assert identity_of(tmp_path / "copy").contents != first.contents


@pytest.mark.parametrize("content", [None, "no list", f"{'0' * 64}  {WEIGHTS}\n"])
def test_without_a_list_of_all_files_the_contents_are_those_files(checkpoint: Path, content: str | None) -> None:
    if content is not None:
        (checkpoint / MANIFEST_NAME).write_text(content)
    identity = identity_of(checkpoint)
    assert identity.contents == identity.files


def test_a_file_that_is_gone_is_named(checkpoint: Path) -> None:
    tensors = read_headers(checkpoint).values()
    (checkpoint / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=WEIGHTS):
        identify(tensors)


def test_a_gguf_file_is_identified_by_the_sums_beside_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_gguf(tmp_path / name / "a.gguf", GgufShape())
    one, two = (read_file(tmp_path / name / "a.gguf").tensors.values() for name in ("one", "two"))
    assert identify(one).contents != identify(two).contents
    for name in ("one", "two"):
        write_manifest(tmp_path / name / "a.gguf")
    assert identify(one).contents == identify(two).contents and identify(one).files != identify(two).files


def test_hosts_with_copies_have_equal_digests_and_those_with_other_weights_or_another_config_have_not(
    checkpoint: Path, tmp_path: Path
) -> None:
    def digest(folder: str) -> str:
        return contents_digest(read_headers(tmp_path / folder).values())

    for name in ("copy", "config"):
        shutil.copytree(checkpoint, tmp_path / name)
    save_random_checkpoint(Shape(seed=1), tmp_path / "tuned")
    (tmp_path / "config" / CONFIG).write_text((checkpoint / CONFIG).read_text().replace("{", "{ ", 1))
    assert digest("first") == digest("copy")
    assert len({digest(name) for name in ("first", "config", "tuned")}) == 3


def test_hosts_compare_gguf_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.gguf" for name in ("one", "two", "other")]
    for path, shape in zip(paths, (GgufShape(), GgufShape(), GgufShape(num_layers=3)), strict=True):
        write_gguf(path, shape)
    one, two, other = (contents_digest(read_file(path).tensors.values()) for path in paths)
    assert one == two != other
