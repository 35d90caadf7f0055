"""server/batch/journal.py: each answer is recorded once, whatever a kill leaves behind."""

import errno
import json
import os
from pathlib import Path

import orjson
import pytest

from server.batch.journal import Journal
from server.batch.lines import BatchError
from server.batch.results import write_results


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def test_answers_are_found_by_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Journal(path) as journal:
        assert journal.done == set()
        journal.append({"custom_id": "a", "text": "é\n"})
    with Journal(path) as journal:
        assert journal.done == {"a"}
        journal.append({"custom_id": "b"})
        assert journal.done == {"a"}  # memory does not grow with a run
    assert ids_in(path) == ["a", "b"]


def test_a_line_that_is_torn_at_any_byte_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Journal(path) as journal:
        journal.append({"custom_id": "a"})
        journal.append({"custom_id": "bé"})
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        with Journal(path) as journal:
            assert journal.done == {"a"}
            journal.append({"custom_id": "c"})
        assert ids_in(path) == ["a", "c"]


def test_a_body_is_written_as_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    answer = {"custom_id": "a", "error": None, "response": {"status_code": 200}}
    monkeypatch.setattr(
        os, "writev", lambda file, pieces: os.write(file, b"".join(pieces)[:7])
    )  # the disk takes little
    with Journal(path) as journal:
        journal.append(answer, bytearray(b"[1.50]"))
        journal.append(answer | {"custom_id": "b"}, b"[]")
    first, second = path.read_text().splitlines()
    assert first == '{"custom_id":"a","error":null,"response":{"status_code":200,"body":[1.50]}}'
    assert json.loads(second)["response"] == {"status_code": 200, "body": []}


def test_a_line_that_cannot_be_written_leaves_nothing_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, pieces: list[memoryview]) -> int:
        if len(pieces[0]) == len(whole):
            return os.write(file, pieces[0][:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "out.jsonl"
    whole = orjson.dumps({"custom_id": "b"})
    with Journal(path) as journal:
        journal.append({"custom_id": "a"})
        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", full)
            with pytest.raises(OSError, match="No space"):
                journal.append({"custom_id": "b"})
        journal.append({"custom_id": "c"})
    assert ids_in(path) == ["a", "c"]


def test_a_second_run_on_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Journal(path), pytest.raises(BatchError, match="another run writes to it"):
        Journal(path)
    Journal(path)


@pytest.mark.parametrize("text", ["[]\n", "{}\n", "words\n"])
def test_a_file_of_something_else_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(text)
    with pytest.raises(BatchError, match="line 1: not a line that a run has written"):
        Journal(path)
    assert path.read_text() == text


@pytest.mark.parametrize("custom_id", ["a", ',"response":', '","response":{', '\\","error":1,"response":', "é\n"])
def test_no_response_is_parsed_to_find_what_is_done(tmp_path: Path, custom_id: str) -> None:
    path = tmp_path / "out.jsonl"
    error = {"code": "400", "message": custom_id}
    with Journal(path) as journal:
        for number, fault in enumerate((None, error)):
            body = orjson.Fragment(b"[" * 99)  # no JSON: whoever parses it fails
            journal.append({"custom_id": f"{number}{custom_id}", "error": fault, "response": {"body": body}})
    with Journal(path) as journal:
        assert journal.done == {f"0{custom_id}", f"1{custom_id}"} and journal.num_failed == 1
    (tmp_path / "good.part").write_bytes(b"torn")  # by a kill
    write_results(path, (), tmp_path / "good", tmp_path / "bad")
    assert (tmp_path / "good").read_bytes() + (tmp_path / "bad").read_bytes() == path.read_bytes()


def test_a_line_whose_error_is_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(
        '{"custom_id":"a","response":{"body":{"error":1}},"error":null}\n{"custom_id":"b","response":{},"error":{}}\n'
    )
    with Journal(path) as journal:
        assert journal.done == {"a", "b"} and journal.num_failed == 1
