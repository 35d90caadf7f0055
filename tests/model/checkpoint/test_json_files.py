"""Only plain JSON objects are read; everything else raises a CheckpointError that names the file."""

import json
from pathlib import Path

import pytest

from model.checkpoint.errors import CheckpointError
from model.checkpoint.json_files import one_line, printable, read_json_object

MAX_BYTES = 1 << 20


def test_a_plain_object_is_read_unchanged(tmp_path: Path) -> None:
    value = {"a": [1, -2.5e3, None, True], "ü": {"b": "\u2028", "": {}}}
    (tmp_path / "x.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    assert read_json_object(tmp_path / "x.json", MAX_BYTES) == value


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "not valid JSON"),
        (b"hello", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"rope_theta": NaN}', "NaN"),
        (b'{"rope_theta": 1e999}', "out of range"),
        (b'{"rope_theta": -Infinity}', "Infinity"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[" * 100_000, "nested"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b" " * (1 << 20) + b"{}", "bytes"),
    ],
    ids=range(16),
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"x.json.*{reason}") as caught:
        read_json_object(tmp_path / "x.json", MAX_BYTES)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.json is missing"):
        read_json_object(tmp_path / "x.json", MAX_BYTES)
    with pytest.raises(CheckpointError, match="is not a file"):
        read_json_object(tmp_path, MAX_BYTES)


def test_values_in_messages_are_printable_ascii_of_at_most_60_characters() -> None:
    assert printable("a\nü") == r"'a\n\xfc'"
    assert printable("x" * 58) == "'" + "x" * 58 + "'"
    assert len(printable("x" * 59)) == 60 and printable("x" * 59).endswith("...")
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert len(one_line(ValueError("a " * 500))) == 200
