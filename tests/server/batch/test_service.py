"""server/batch/service.py: what a full disk and a database that fails leave of batches."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server.batch import service
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
    file = store.add_file(OWNER, "in.jsonl", content)
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

    await until(lambda: batch()["status"] in ("completed", "failed"))
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
