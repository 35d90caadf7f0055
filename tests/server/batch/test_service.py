"""server/batch/service.py: what a full disk, a database that fails and the end of the server leave of batches."""

import asyncio
import json
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from server.batch import journal, lines, results, service
from server.batch.journal import Journal
from server.batch.lines import BatchLine
from server.batch.runner import Answer
from server.batch.service import BatchService
from server.batch.store import Object, Store
from tests.support.conditions import until

pytestmark = pytest.mark.anyio

OWNER = "a"
URL = "/v1/completions"


async def fine(line: BatchLine) -> Answer:
    return Answer(200, "request", b'{"text":"fine"}')


def new_service(tmp_path: Path, send: Callable[[BatchLine], Any] = fine) -> BatchService:
    return BatchService(Store(tmp_path), lambda _: send, {OWNER: 0}, concurrency=1, retention_s=1e9)


def start(store: Store, content: bytes) -> str:
    """Add a batch of an input file and return its id."""
    upload = store.new_upload()
    upload.write(content)
    file = store.add_file(OWNER, "in.jsonl", upload)
    ends = {f"{name}_file_id": None for name in ("output", "error")}
    batch = {"status": "validating", "endpoint": URL, "input_file_id": file["id"], "errors": None, **ends}
    return str(store.add_batch(OWNER, {**batch, "expires_at": 1e12})["id"])


def line(name: str) -> bytes:
    return json.dumps({"custom_id": name, "method": "POST", "url": URL, "body": {}}).encode()


@asynccontextmanager
async def running(batches: BatchService) -> AsyncIterator[None]:
    """Run batches inside this block, which fails if the run has ended before it."""
    task = asyncio.create_task(batches.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ended(store: Store, batch_id: str) -> Object:
    def batch() -> Object:
        return store.get("batches", OWNER, batch_id) or {}

    await until(lambda: batch()["status"] in ("completed", "expired", "failed"))
    return batch()


def failing(monkeypatch: pytest.MonkeyPatch, store: Store, method: str, times: int) -> None:
    """Let the first calls of a store's method fail as SQLite does when the disk is full."""
    left = iter(range(times))
    works = getattr(store, method)

    def called(*args: Any) -> Any:
        if next(left, None) is not None:
            raise sqlite3.OperationalError("database or disk is full")
        return works(*args)

    monkeypatch.setattr(store, method, called)


@pytest.mark.parametrize(("method", "times"), [("open_batches", 2), ("update_batch", 2), ("end_batch", 1)])
async def test_batches_run_on_after_the_database_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, times: int
) -> None:
    """`update_batch` fails twice: when the batch begins, and when its failure is to be stored."""
    monkeypatch.setattr(service, "POLL_S", 0.01)
    batches = new_service(tmp_path)
    first = start(batches.store, line("a"))
    failing(monkeypatch, batches.store, method, times)
    async with running(batches):
        await ended(batches.store, first)
        second = start(batches.store, line("b"))
        batches.wake()
        assert (await ended(batches.store, second))["status"] == "completed"


async def test_a_fault_in_one_batch_does_not_end_the_others(tmp_path: Path) -> None:
    senders = iter([fine])  # none for the second batch: a fault of the program itself
    batches = new_service(tmp_path)
    batches._send_for = lambda _: next(senders)
    ids = [start(batches.store, line(name)) for name in ("a", "b")]
    async with running(batches):
        assert (await ended(batches.store, ids[0]))["status"] == "completed"
        assert (await ended(batches.store, ids[1]))["status"] == "failed"
        batches._send_for = lambda _: fine
        batches.wake()
        assert (await ended(batches.store, start(batches.store, line("c"))))["status"] == "completed"


async def test_a_fault_that_comes_again_while_a_batch_is_ended_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("error")

    batches = new_service(tmp_path)
    monkeypatch.setattr(service, "POLL_S", 0.05)
    with monkeypatch.context() as patched:
        patched.setattr(service, "write_results", fail)
        async with running(batches):
            assert (await ended(batches.store, start(batches.store, line("a"))))["status"] == "failed"
            patched.undo()
            assert (await ended(batches.store, start(batches.store, line("b"))))["status"] == "completed"


def left_of(tmp_path: Path, store: Store) -> set[str]:
    """Return the names of the contents and journals that are no file of the owner."""
    known = {file["id"] for file in store.page("files", OWNER, None, -1, newest_first=False)}
    return {path.name for folder in ("files", "running") for path in (tmp_path / folder).iterdir()} - known


async def test_a_batch_that_an_error_stops_keeps_the_answers_that_it_has(tmp_path: Path) -> None:
    async def send(line: BatchLine) -> Answer:
        if line.custom_id == "c":
            raise OSError(28, "No space left on device")
        return Answer(200 if line.custom_id == "a" else 400, "request", b"{}")

    batches = new_service(tmp_path, send)
    batch_id = start(batches.store, b"\n".join(map(line, "abcd")))
    async with running(batches):
        batch = await ended(batches.store, batch_id)
        await until(lambda: not left_of(tmp_path, batches.store))  # the journal goes last
    assert batch["status"] == "failed" and "No space" in batch["errors"]["data"][0]["message"]
    assert batch["request_counts"] == {"total": 4, "completed": 1, "failed": 1}
    for name, custom_id in (("output_file_id", "a"), ("error_file_id", "b")):
        (answer,) = batches.store.content_path(batch[name]).read_text().splitlines()
        assert json.loads(answer)["custom_id"] == custom_id


async def test_results_that_cannot_be_written_leave_a_journal_that_goes_with_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = new_service(tmp_path)
    store = batches.store
    batch_id = start(store, line("a"))
    failing(monkeypatch, store, "end_batch", 2)
    async with running(batches):
        batch = await ended(store, batch_id)
    assert batch["status"] == "failed" and batch["output_file_id"] is None
    assert left_of(tmp_path, store) == {store.journal_path(batch_id).name}
    assert store.delete_ended(0, before_s=0) == 1 and not left_of(tmp_path, store)


class Held:
    """A function that waits in its first call until it is released."""

    def __init__(self, works: Callable[..., Any]) -> None:
        self._works = works
        self.num_calls = 0
        self.may_go_on = threading.Event()

    def __call__(self, *args: Any) -> Any:
        self.num_calls += 1
        assert self.may_go_on.wait(60)
        return self._works(*args)


@pytest.mark.parametrize(
    ("module", "function", "status"),
    [(lines, "parse_line", "validating"), (journal, "head_of", "finalizing"), (results, "head_of", "finalizing")],
    ids=["file", "journal", "results"],
)
async def test_the_end_of_the_server_waits_for_one_line_and_the_next_start_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, function: str, status: str
) -> None:
    batches = new_service(tmp_path)
    batch_id = start(batches.store, b"\n".join(map(line, "abc")))
    held = Held(getattr(module, function))
    with monkeypatch.context() as patched:
        patched.setattr(module, function, held)
        task = asyncio.create_task(batches.run())
        await until(lambda: held.num_calls == 1)
        task.cancel()
        for _ in range(20):  # turns of the loop in which nothing ends but what does not wait
            await asyncio.sleep(0)
        has_waited = not task.done()
        held.may_go_on.set()
        await asyncio.gather(task, return_exceptions=True)
    assert has_waited
    assert held.num_calls == 1
    assert (batches.store.get("batches", OWNER, batch_id) or {})["status"] == status
    assert len(list((tmp_path / "files").iterdir())) == 1
    async with running(batches):
        batch = await ended(batches.store, batch_id)
    assert batch["status"] == "completed" and batch["request_counts"]["completed"] == 3


async def test_a_batch_whose_results_were_being_written_is_completed_however_late(tmp_path: Path) -> None:
    batches = new_service(tmp_path)
    batch_id = start(batches.store, b"\n".join(map(line, "abc")))
    with Journal(batches.store.journal_path(batch_id)) as answers:
        for name in "abc":
            answers.append({"custom_id": name, "error": None, "response": {}})
    counts = {"total": 3, "completed": 3, "failed": 0}
    changes = {"status": "finalizing", "request_counts": counts, "expires_at": 1.0}
    batches.store.update_batch(batch_id, ("validating",), changes)
    async with running(batches):
        batch = await ended(batches.store, batch_id)
    assert batch["status"] == "completed" and batch["request_counts"] == counts


async def test_a_request_too_many_is_named_by_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_LINES", 2)
    batches = new_service(tmp_path)
    batch_id = start(batches.store, b"\n\n".join(map(line, "abc")))
    async with running(batches):
        batch = await ended(batches.store, batch_id)
    assert batch["errors"]["data"][0]["line"] == 5
