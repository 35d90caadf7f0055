"""model/checkpoint/identity.py: replaced files change the identity, untouched and copied ones do not."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from model.checkpoint import identity
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


def later_than_list(file: Path) -> None:
    """Give the file a time after the manifest's: the clock of file times may not have ticked since."""
    written_ns = (file.parent / MANIFEST_NAME).stat().st_mtime_ns
    os.utime(file, ns=(0, written_ns + 1))


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


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_sums_of_a_file_that_was_changed_after_the_list_are_not_believed(checkpoint: Path, name: str) -> None:
    write_manifest(checkpoint)
    assert not identity_of(checkpoint).warnings
    flip_last_byte(checkpoint / name)
    later_than_list(checkpoint / name)
    changed = identity_of(checkpoint)
    assert changed.contents == changed.files
    [warning] = changed.warnings
    assert warning.startswith(f"{checkpoint / name}: written after {MANIFEST_NAME}")
    assert warning.endswith(f"smoe plan {checkpoint} --write-manifest") and "\n" not in warning


def test_a_copy_with_other_times_is_believed_if_it_is_small_or_verified(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of a copy may be newer than its list. Small ones are hashed, and so is everything by --verify."""
    write_manifest(checkpoint)
    tensors, listed = read_headers(checkpoint).values(), identity_of(checkpoint)
    for name in (WEIGHTS, CONFIG):
        later_than_list(checkpoint / name)
    assert identity_of(checkpoint).contents == listed.contents
    monkeypatch.setattr(identity, "HASHED_BYTES", (checkpoint / WEIGHTS).stat().st_size)  # a little too few
    large = identify(tensors)
    assert large.contents == large.files
    assert f"{checkpoint / WEIGHTS} and 1 more: written after" in large.warnings[0]
    verified = identify(tensors, is_verified=True)
    assert verified.contents == listed.contents and not verified.warnings


@pytest.mark.parametrize("content", [None, "no list", f"{'0' * 64}  {WEIGHTS}\n"])
def test_without_a_list_of_all_files_the_contents_are_those_files(checkpoint: Path, content: str | None) -> None:
    if content is not None:
        (checkpoint / MANIFEST_NAME).write_text(content)
    unlisted = identity_of(checkpoint)
    assert unlisted.contents == unlisted.files and not unlisted.warnings


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
    file, sums = tmp_path / "two" / "a.gguf", tmp_path / "two" / "a.gguf.sha256"
    flip_last_byte(file)
    os.utime(file, ns=(0, sums.stat().st_mtime_ns + 1))
    [warning] = identify(two).warnings
    assert warning.endswith(f"smoe plan {file} --write-manifest") and identify(two).contents == identify(two).files


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
