"""server/api/batch_access.py: pages of files and batches, bounded and rendered off the event loop; a file that goes."""

import sqlite3
import threading
from pathlib import Path
from types import SimpleNamespace

import httpx
import orjson
import pytest

from server.api import batch_access
from server.api.app import create_app
from server.api.batch_access import BatchAccess, open_batches
from server.batch.app_sender import app_sender
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import check_error, client_of, saying, state_around

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(tmp_path: Path) -> tuple[httpx.AsyncClient, BatchAccess]:
    """A client without a key, and the files and batches of its server, which runs none."""
    state = state_around(FakeEngine(saying("fine")))
    app = create_app(state)
    access = open_batches(
        tmp_path,
        (),
        lambda tenant: app_sender(app, tenant, by_priority=True),
        max_num_queued=4,
        retention_days=1,
        max_line_bytes=4096,
    )
    app.state.batches = access
    return client_of(state, app=app), access


def add_file(access: BatchAccess) -> str:
    upload = access.store.new_upload()
    upload.write(b"content")
    return str(access.store.add_file("", "in.jsonl", upload)["id"])


async def test_a_page_has_at_most_100_batches(server: tuple[httpx.AsyncClient, BatchAccess]) -> None:
    client, access = server
    for _ in range(101):
        access.store.add_batch("", {"status": "validating", "input_file_id": "file-1"})
    page = (await client.get("/v1/batches", params={"limit": "100"})).json()
    assert len(page["data"]) == 100 and page["has_more"]
    rest = (await client.get("/v1/batches", params={"limit": "100", "after": page["last_id"]})).json()
    assert len(rest["data"]) == 1 and not rest["has_more"]
    refused = await client.get("/v1/batches", params={"limit": "101"})
    check_error(refused, 400, "invalid_value", "limit")
    assert refused.json()["error"]["message"] == "'limit' must be an integer from 1 to 100."
    assert (await client.get("/v1/files", params={"limit": "10000"})).status_code == 200


@pytest.mark.parametrize("table", ["files", "batches"])
async def test_a_page_is_rendered_in_a_thread(
    server: tuple[httpx.AsyncClient, BatchAccess], monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    threads: list[int] = []

    def noted(body: object) -> bytes:
        threads.append(threading.get_ident())
        return orjson.dumps(body)

    client, access = server
    ids = {"files": add_file(access), "batches": access.store.add_batch("", {"status": "validating"})["id"]}
    monkeypatch.setattr(batch_access, "orjson", SimpleNamespace(dumps=noted))
    page = (await client.get(f"/v1/{table}")).json()
    assert [item["id"] for item in page["data"]] == [ids[table]] and not page["has_more"]
    assert len(threads) == 1 and threads[0] != threading.get_ident()


async def test_a_file_that_is_deleted_while_it_is_asked_for_is_not_found(
    server: tuple[httpx.AsyncClient, BatchAccess],
) -> None:
    client, access = server
    file_id = add_file(access)
    assert (await client.get(f"/v1/files/{file_id}/content")).content == b"content"
    access.store.content_path(file_id).unlink()  # as a deletion does between the look at the row and the download
    check_error(await client.get(f"/v1/files/{file_id}/content"), 404, "file_not_found", "file_id")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (sqlite3.SQLITE_FULL, 507),
        (sqlite3.SQLITE_BUSY, 503),
        (sqlite3.SQLITE_BUSY_RECOVERY, 503),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, 503),
        (sqlite3.SQLITE_CORRUPT, None),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, None),
    ],
)
def test_a_full_and_a_locked_database_are_no_faults_of_the_server(code: int, status: int | None) -> None:
    error = sqlite3.OperationalError("of SQLite")
    error.sqlite_errorcode = code
    refusal = batch_access.storage_error(error)
    assert (refusal and refusal.status) == status
