"""server/batch/store.py: what has ended is deleted by age and number, with its results, and nothing else."""

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from server.batch import store as store_module
from server.batch.store import OPEN, Store, Upload

OWNER = "a"
NO_FILES = {"input_file_id": "file-1", "output_file_id": None, "error_file_id": None}
ENDS = ("completed", "failed", "expired", "cancelled")


def ended(store: Store, status: str, at_s: float, *, has_results: bool = True) -> str:
    """Add a batch that has ended, with an output file, and return its id."""
    batch_id = str(store.add_batch(OWNER, {"status": "in_progress", **NO_FILES})["id"])
    file_id = f"file-output-{batch_id}"
    files = {file_id: ("output.jsonl", 2)} if has_results else {}
    if has_results:
        store.content_path(file_id).write_bytes(b"{}")
    changes = {"status": status, f"{status}_at": at_s, "output_file_id": file_id if has_results else None}
    store.end_batch(OWNER, batch_id, changes, files)
    return batch_id


def left(store: Store) -> set[str]:
    return {batch["id"] for batch in store.page("batches", OWNER, None, -1, newest_first=False)}


def contents(tmp_path: Path) -> int:
    return len(list((tmp_path / "files").iterdir()))


@pytest.mark.parametrize("status", ENDS)
def test_a_batch_counts_its_age_from_its_end(tmp_path: Path, status: str) -> None:
    store = Store(tmp_path)
    old, young = ended(store, status, 99), ended(store, status, 100)
    assert store.delete_ended(10, before_s=100) == 1
    assert left(store) == {young} and old != young
    assert contents(tmp_path) == len(store.page("files", OWNER, None, -1, newest_first=False)) == 1


@pytest.mark.parametrize("status", OPEN)
def test_a_batch_that_has_not_ended_is_never_deleted(tmp_path: Path, status: str) -> None:
    store = Store(tmp_path)
    store.add_batch(OWNER, {"status": status, "created_at": 0, **NO_FILES})
    assert store.delete_ended(0, before_s=1e12) == 0 and len(left(store)) == 1


def test_a_batch_without_results_or_whose_results_were_deleted_is_deleted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ended(store, "failed", 1, has_results=False)
    batch_id = ended(store, "completed", 1)
    assert store.delete_file(OWNER, f"file-output-{batch_id}")
    assert store.delete_ended(10, before_s=2) == 2 and not left(store)


def test_open_batches_are_counted_and_their_files_kept_without_parsing_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(_: str) -> object:
        raise AssertionError("a batch may have a hundred kilobytes")

    store = Store(tmp_path)
    for owner, status in [*((OWNER, status) for status in (*OPEN, *ENDS)), ("b", "in_progress")]:
        store.add_batch(owner, {"status": status, "input_file_id": f"file-{owner}-{status}"})
    monkeypatch.setattr(store_module, "json", SimpleNamespace(dumps=json.dumps, loads=parse))
    assert (store.num_open_batches(OWNER), store.num_open_batches("b"), store.num_open_batches("c")) == (
        len(OPEN),
        1,
        0,
    )
    assert {status for status in (*OPEN, *ENDS) if store.delete_file(OWNER, f"file-{OWNER}-{status}")} == set(ENDS)
    assert store.delete_file(OWNER, "file-b-in_progress")  # of another owner, whose files have other ids


def test_an_upload_has_its_name_when_it_is_complete_and_leaves_nothing_otherwise(tmp_path: Path) -> None:
    store = Store(tmp_path)
    upload = store.new_upload()
    upload.write(b"ab")
    upload.write(b"c")
    assert not upload.path.exists()
    file = store.add_file(OWNER, "in.jsonl", upload)
    upload.discard()
    assert (file["bytes"], store.content_path(file["id"]).read_bytes()) == (3, b"abc")
    broken = store.new_upload()
    broken.write(b"ab")
    broken.discard()
    assert contents(tmp_path) == 1 and store.usage(OWNER) == (1, 3)


def test_what_a_killed_upload_has_left_is_deleted_and_what_arrives_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add_file(OWNER, "in.jsonl", store.new_upload())
    arriving, killed = store.new_upload(), store.new_upload()
    killed._file.close()
    Store(tmp_path).delete_parts()  # of another server
    assert sorted(path.suffix for path in (tmp_path / "files").iterdir()) == ["", ".part"]
    arriving.write(b"abc")
    assert store.content_path(store.add_file(OWNER, "in.jsonl", arriving)["id"]).read_bytes() == b"abc"


def test_an_upload_is_swept_neither_before_its_lock_nor_when_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    flock, replace = fcntl.flock, os.replace
    num_locks = 0

    def late(file: BinaryIO, how: int) -> None:
        nonlocal num_locks
        num_locks += 1
        with monkeypatch.context() as patched:
            patched.setattr(fcntl, "flock", flock)
            if num_locks == 1:
                store.delete_parts()
        flock(file, how)

    def swept(old: Path, new: Path) -> None:
        store.delete_parts()
        replace(old, new)
        store.delete_parts()

    monkeypatch.setattr(fcntl, "flock", late)
    upload = store.new_upload()
    monkeypatch.setattr(fcntl, "flock", flock)
    upload.write(b"abc")
    monkeypatch.setattr(os, "replace", swept)
    assert num_locks == 2 and store.content_path(store.add_file(OWNER, "a", upload)["id"]).read_bytes() == b"abc"


def test_a_deletion_that_fails_in_the_middle_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    batches = {ended(store, "completed", 1) for _ in range(3)}
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", failing_after(1))
        with pytest.raises(OSError, match="disk"):
            store.delete_ended(10, before_s=2)
    assert left(store) == batches and contents(tmp_path) == 2
    assert store.delete_ended(10, before_s=2) == 3
    assert not left(store) and not contents(tmp_path)


def failing_after(num_good: int) -> Callable[..., None]:
    good = iter(range(num_good))

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        if next(good, None) is None:
            raise OSError("the disk is gone")
        os.unlink(path)

    return unlink


CHANGES: dict[str, Callable[[Store, str, dict[str, object]], object]] = {
    "update_batch": lambda store, batch_id, changes: store.update_batch(batch_id, OPEN, changes),
    "end_batch": lambda store, batch_id, changes: store.end_batch(OWNER, batch_id, changes, {"file-1": ("a", 1)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_full_disk_is_named_and_changes_nothing(tmp_path: Path, change: str) -> None:
    store = Store(tmp_path)
    batch_id = store.add_batch(OWNER, {"status": "validating", **NO_FILES})["id"]
    before = store.get("batches", OWNER, batch_id)
    (num_pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {num_pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        CHANGES[change](store, batch_id, {"metadata": "x" * 100_000})
    assert store.get("batches", OWNER, batch_id) == before and store.usage(OWNER) == (0, 0)
    assert store.update_batch(batch_id, OPEN, {"status": "failed"})["status"] == "failed"


@pytest.mark.parametrize("failing", ["finish", "_insert_file"])
def test_an_upload_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def finish(_: Upload) -> None:
        raise OSError("the disk is full")

    def insert(*_: object) -> None:
        raise sqlite3.OperationalError("the disk is full")

    monkeypatch.setattr(*((Upload, "finish", finish) if failing == "finish" else (Store, "_insert_file", insert)))
    store = Store(tmp_path)
    upload = store.new_upload()
    upload.write(b"content")
    with pytest.raises((OSError, sqlite3.Error), match="full"):
        store.add_file(OWNER, "in.jsonl", upload)
    assert not contents(tmp_path)
