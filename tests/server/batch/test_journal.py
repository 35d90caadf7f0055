"""server/batch/journal.py: each answer is recorded once, whatever a kill leaves behind."""

import json
from pathlib import Path

import pytest

from server.batch.journal import Journal
from server.batch.lines import BatchError


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
