"""SHA256SUMS: what is written is what `sha256sum -c` accepts, and every change of a file is found."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from model.checkpoint import manifest
from model.checkpoint.errors import CheckpointError
from model.checkpoint.manifest import MANIFEST_NAME, verify_manifest, write_manifest
from tests.support.paths import DEMO

FILES = {"a.safetensors": b"weights", "config.json": b"{}", "tokenizer.model.v3": b"pieces", "chat_template.jinja": b""}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "notes.txt").write_text("not served")
    write_manifest(tmp_path)
    return tmp_path


def _verify(path: Path) -> list[tuple[int, int]]:
    progress: list[tuple[int, int]] = []
    verify_manifest(path, lambda done, total: progress.append((done, total)))
    return progress


def _assert_refused(path: Path, pattern: str) -> None:
    with pytest.raises(CheckpointError, match=pattern) as caught:
        _verify(path)
    assert "\n" not in str(caught.value)


def test_the_sums_are_those_of_all_files_that_serving_reads(checkpoint: Path) -> None:
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in sorted(FILES.items())]
    assert (checkpoint / MANIFEST_NAME).read_text().splitlines() == lines
    subprocess.run(["sha256sum", "--check", "--strict", MANIFEST_NAME], cwd=checkpoint, check=True, capture_output=True)
    assert write_manifest(checkpoint) == (checkpoint / MANIFEST_NAME, len(FILES))


def test_the_sums_of_a_gguf_file_are_beside_it(tmp_path: Path) -> None:
    """One list for all parts of a model, none for other files of the folder."""
    parts = [tmp_path / f"m-0000{part}-of-00002.gguf" for part in (1, 2)]
    for file in (*parts, tmp_path / "other.gguf"):
        file.write_bytes(file.name.encode())
    assert write_manifest(parts[0]) == (tmp_path / "m-00001-of-00002.gguf.sha256", 2)
    subprocess.run(["sha256sum", "--check", "m-00001-of-00002.gguf.sha256"], cwd=tmp_path, check=True)
    total = sum(part.stat().st_size for part in parts)
    assert _verify(parts[0])[-1] == (total, total)
    parts[1].write_bytes(b"changed")
    _assert_refused(parts[0], r"m-00002-of-00002\.gguf is damaged")
    parts[1].unlink()
    _assert_refused(parts[0], r"m-00002-of-00002\.gguf cannot be read")
    _assert_refused(tmp_path / "other.gguf", r"other\.gguf\.sha256 is missing; .* smoe plan \S+/other\.gguf --write")


def test_progress_ends_at_all_bytes(checkpoint: Path) -> None:
    total = sum(map(len, FILES.values()))
    progress = _verify(checkpoint)
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert progress[-1] == (total, total) and len(progress) == len(FILES)


def test_progress_within_a_large_file_is_reported(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's heartbeat follows it: one file may take longer than the engine may be silent."""
    monkeypatch.setattr(manifest, "READ_BYTES", 2)
    monkeypatch.setattr(manifest, "REPORT_BYTES", 4)
    progress = _verify(checkpoint)
    sizes = [len(content) for content in FILES.values()]
    assert len(progress) == sum(size // 4 + 1 for size in sizes)
    assert progress[-1] == (sum(sizes), sum(sizes))


def test_sums_in_capitals_of_binary_files_with_comments_are_read(checkpoint: Path) -> None:
    text = (checkpoint / MANIFEST_NAME).read_text()
    lines = [f"{line[:64].upper()} *./{line[66:]}" for line in text.splitlines()]
    (checkpoint / MANIFEST_NAME).write_text("# sums\n\n" + "\n".join(lines))
    assert _verify(checkpoint)


def test_a_flipped_bit_is_found(checkpoint: Path) -> None:
    (checkpoint / "a.safetensors").write_bytes(b"weighus")
    _assert_refused(checkpoint, r"a\.safetensors is damaged")


def test_a_file_that_is_missing_or_not_listed_is_named(checkpoint: Path) -> None:
    (checkpoint / "b.json").write_text("{}")
    _assert_refused(checkpoint, r"b\.json is not listed .*--write-manifest")
    (checkpoint / "b.json").unlink()
    (checkpoint / "config.json").unlink()
    _assert_refused(checkpoint, r"'config\.json' is missing, though")


@pytest.mark.parametrize(
    "content", [b"", b"hello\n", b"# nothing\n", b"\xff" * 80, b"0" * 64 + b"  a\n" + b"x" * (1 << 20)]
)
def test_what_is_no_list_of_sums_is_refused(content: bytes, checkpoint: Path) -> None:
    (checkpoint / MANIFEST_NAME).write_bytes(content)
    _assert_refused(checkpoint, "is not a list of SHA-256 sums")


def test_without_a_manifest_the_message_says_how_to_write_one(checkpoint: Path) -> None:
    (checkpoint / MANIFEST_NAME).unlink()
    _assert_refused(checkpoint, "SHA256SUMS is missing.*--write-manifest")


def test_the_bundled_models_files_have_their_sums() -> None:
    _verify(DEMO)
