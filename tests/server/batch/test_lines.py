"""server/batch/lines.py: requests of a batch, and one line of error for each fault."""

import json
from pathlib import Path
from typing import Any

import pytest

from server.batch import lines
from server.batch.lines import BatchError, LineError, parse_line, read_lines

GOOD: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}


def test_a_file_is_read_line_by_line_without_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps({**GOOD, 'custom_id': 'é'})}")
    found = list(read_lines(path))
    assert [(line.custom_id, line.url) for line in found] == [("a", "/v1/completions"), ("é", "/v1/completions")]
    assert json.loads(found[0].body_bytes()) == {"prompt": "x"}


def test_a_clients_file_has_a_bound_on_blank_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_BLANK_LINES", 2)
    path = tmp_path / "in.jsonl"
    path.write_text(f"\n{json.dumps(GOOD)}\n \t\n")
    assert len(list(read_lines(path, 1000))) == 1
    path.write_text(f"\n{json.dumps(GOOD)}\n \n\n\n")
    with pytest.raises(LineError, match="line 4: one of more than 2 blank lines"):
        list(read_lines(path, 1000))
    assert len(list(read_lines(path))) == 1  # a file of one's own


def test_a_body_is_sent_in_as_few_bytes_as_its_line_has() -> None:
    """So a server that takes the line as part of a file takes the request too: both have one bound."""
    body = {"prompt": "é 漢字 \U0001f600", "ids": [1, 2, 3]}
    text = json.dumps({**GOOD, "body": body}, ensure_ascii=False, separators=(",", ":")).encode()
    line = parse_line(text)
    assert line.body_bytes() in text and json.loads(line.body_bytes()) == body
    assert json.loads(line.body_bytes(priority=7)) == {**body, "priority": 7}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"custom_id": 5}, "custom_id"),
        ({"custom_id": ""}, "custom_id"),
        ({"custom_id": "x" * 513}, "custom_id must be a text of at most 512 characters"),
        ({"method": "GET"}, "method"),
        ({"url": "http://a/v1/completions"}, "url"),
        ({"url": "/v1/a b"}, "url"),
        ({"url": "/v1/a\r\nx: y"}, "url"),
        ({"body": []}, "body"),
        ({"body": {"stream": True}}, "body.stream"),
    ],
    ids=str,
)
def test_a_bad_line_is_one_line_of_error(change: dict[str, Any], part: str) -> None:
    with pytest.raises(BatchError) as caught:
        parse_line(json.dumps(GOOD | change).encode())
    assert str(caught.value).startswith(part) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"a": NaN}', b"\xff"])
def test_what_is_no_object_is_an_error(text: bytes) -> None:
    with pytest.raises(BatchError, match="not a JSON object"):
        parse_line(text)


def test_errors_name_the_file_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(GOOD) + "\n{\n")
    with pytest.raises(BatchError, match=rf"^{path}, line 2: not a JSON object$"):
        list(read_lines(path))
    path.write_text((json.dumps(GOOD) + "\n") * 2)
    with pytest.raises(BatchError, match=r"line 2: the custom_id of an earlier line$"):
        list(read_lines(path))


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_line_that_is_too_long_is_not_read_to_its_end(tmp_path: Path, end: str) -> None:
    path, text = tmp_path / "in.jsonl", json.dumps(GOOD)
    path.write_text(f"{text}\n")
    assert len(list(read_lines(path, len(text) + 1))) == 1
    path.write_text(f"{text}\n{json.dumps({**GOOD, 'custom_id': 'b'})[:-1]}{' ' * 9999}}}{end}")
    lines = read_lines(path, len(text) + 1)
    assert next(lines).custom_id == "a"
    with pytest.raises(BatchError, match=rf"^{path}, line 2: longer than {len(text) + 1} bytes"):
        next(lines)


def test_a_file_that_was_checked_is_read_without_keeping_its_ids(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text((json.dumps(GOOD) + "\n") * 2)
    assert [line.custom_id for line in read_lines(path, is_checked=True)] == ["a", "a"]
