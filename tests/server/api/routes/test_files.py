"""/v1/files: uploads in pieces, pages, bounds."""

import asyncio
import contextlib
import errno
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from server.api.routes import files
from server.batch.store import DATABASE_NAME, Upload
from tests.support.conditions import until
from tests.support.servers.batch_server import MAX_UPLOAD_BYTES, BatchServer, upload
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import check_error, saying

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(tmp_path: Path) -> BatchServer:
    return BatchServer(tmp_path, FakeEngine(saying("fine")))


async def test_lists_come_in_pages(server: BatchServer) -> None:
    client = server.clients[0]
    ids = [(await upload(client, b"x")).json()["id"] for _ in range(3)]
    first = (await client.get("/v1/files", params={"limit": 2})).json()
    assert [file["id"] for file in first["data"]] == [ids[2], ids[1]] and first["has_more"]
    rest = (await client.get("/v1/files", params={"limit": 2, "after": first["last_id"]})).json()
    assert [file["id"] for file in rest["data"]] == [ids[0]] and not rest["has_more"]
    oldest = (await client.get("/v1/files", params={"order": "asc"})).json()
    assert [file["id"] for file in oldest["data"]] == ids
    check_error(await client.get("/v1/files", params={"limit": "0"}), 400, "invalid_value", "limit")
    check_error(await client.get("/v1/files", params={"purpose": "vision"}), 400, "invalid_value", "purpose")


def form_of(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield a form with a file, whose length is not declared."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b'--B\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        yield b'--B\r\ncontent-disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        async for piece in content:
            yield piece
        yield b"\r\n--B--\r\n"

    return pieces()


async def upload_pieces(client: httpx.AsyncClient, content: AsyncIterator[bytes]) -> httpx.Response:
    headers = {"content-type": "multipart/form-data; boundary=B"}
    return await client.post("/v1/files", content=form_of(content), headers=headers)


async def test_a_file_larger_than_a_request_is_written_as_it_arrives(
    server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    write = Upload.write

    def counted(upload: Upload, piece: bytes) -> None:
        sizes.append(len(piece))
        write(upload, piece)

    async def content() -> AsyncIterator[bytes]:
        for _ in range(32):
            yield b"x" * (64 << 10)

    monkeypatch.setattr(Upload, "write", counted)
    stored = await upload_pieces(server.clients[0], content())
    assert stored.json()["bytes"] == 2 << 20 and server.access.num_uploads.total() == 0
    back = await server.clients[0].get(f"/v1/files/{stored.json()['id']}/content")
    assert back.content == b"x" * (2 << 20)
    assert len(sizes) >= 8 and max(sizes) <= files.WRITTEN_BYTES + (64 << 10)


async def test_an_upload_that_fails_leaves_nothing(server: BatchServer, tmp_path: Path) -> None:
    async def too_long() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * (64 << 10)

    async def cut_off() -> AsyncIterator[bytes]:
        yield b"x" * (1 << 20)
        yield b"\r\n--B\r\nno header\r\n\r\n"

    check_error(await upload_pieces(server.clients[0], too_long()), 413, "request_too_large")
    check_error(await upload_pieces(server.clients[0], cut_off()), 400, "invalid_form")
    assert not list((tmp_path / "files").iterdir()) and server.access.num_uploads.total() == 0
    assert (await server.clients[0].get("/v1/files")).json()["data"] == []


async def test_a_key_uploads_a_few_files_at_a_time(server: BatchServer) -> None:
    may_end = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * files.WRITTEN_BYTES
        await may_end.wait()

    client, other = server.clients
    running = [asyncio.create_task(upload_pieces(client, slow())) for _ in range(files.MAX_UPLOADS)]
    await until(lambda: server.access.num_uploads.total() == files.MAX_UPLOADS)
    refused = await upload(client, b"x")
    check_error(refused, 429, "too_many_uploads")
    assert int(refused.headers["retry-after"]) > 0
    assert (await upload(other, b"x")).status_code == 200
    may_end.set()
    assert [reply.status_code for reply in await asyncio.gather(*running)] == [200] * files.MAX_UPLOADS
    assert (await upload(client, b"x")).status_code == 200


async def test_bad_uploads_are_one_line(server: BatchServer) -> None:
    client = server.clients[0]
    check_error(await upload(client, b"x", purpose="fine-tune"), 400, "invalid_value", "purpose")
    check_error(await upload(client, b""), 400, "invalid_value", "file")
    check_error(await upload(client, b"x" * MAX_UPLOAD_BYTES), 413, "request_too_large")
    check_error(await client.post("/v1/files", json={}), 415, "unsupported_content_type", "Content-Type")
    alone = await client.post("/v1/files", files={"file": ("a", b"x")})
    check_error(alone, 400, "missing_required_parameter", "purpose")
    more = {"purpose": "batch", "expires_after[seconds]": "9"}
    check_error(await client.post("/v1/files", files={"file": ("a", b"x")}, data=more), 400, "unsupported_parameter")


@pytest.mark.parametrize(
    "filename", [b"*=unicode_escape''%5Cud800", b"*=utf-7''+2AA-", b"*=idna''x", b"*=a%00b''x", b"*=a; filename*0=b"]
)
async def test_a_name_that_cannot_be_read_is_refused_and_files_are_listed(server: BatchServer, filename: bytes) -> None:
    client = server.clients[0]
    form = b'--B\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    form += b'--B\r\ncontent-disposition: form-data; name="file"; filename' + filename + b"\r\n\r\n{}\r\n--B--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=B"}
    check_error(await client.post("/v1/files", content=form, headers=headers), 400, "invalid_form")
    stored = (await upload(client, b"x")).json()["id"]
    files = await client.get("/v1/files")
    assert files.status_code == 200 and [file["id"] for file in files.json()["data"]] == [stored]


async def test_a_full_disk_is_named(server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Upload, piece: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Upload, "write", fail)
        refused = await upload(server.clients[0], b"x")
    check_error(refused, 507, "insufficient_storage")
    assert refused.headers["x-should-retry"] == "false"
    assert not list((tmp_path / "files").iterdir()) and server.access.num_uploads.total() == 0
    assert (await upload(server.clients[0], b"x")).status_code == 200


async def test_a_database_without_room_is_a_full_disk(server: BatchServer) -> None:
    server.access.store._db.execute("PRAGMA max_page_count = 1")  # the least is the present size
    client, answers = server.clients[0], []
    for _ in range(200):
        answers.append(await upload(client, b"x"))
        if answers[-1].status_code != 200:
            break
    check_error(answers[-1], 507, "insufficient_storage")
    files = (await client.get("/v1/files")).json()["data"]
    assert len(files) == len(answers) - 1  # nothing is left of the one that failed


async def test_a_database_that_another_process_has_locked_is_overloaded(server: BatchServer, tmp_path: Path) -> None:
    server.access.store._db.execute("PRAGMA busy_timeout = 10")  # ms
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_NAME, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        refused = await upload(server.clients[0], b"x")
    check_error(refused, 503, "overloaded")
    assert int(refused.headers["retry-after"]) > 0
    assert (await upload(server.clients[0], b"x")).status_code == 200


async def test_other_errors_of_the_disk_are_faults_of_the_server(
    server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Upload, piece: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Upload, "write", fail)
    check_error(await upload(server.clients[0], b"x"), 500, "internal_error")
