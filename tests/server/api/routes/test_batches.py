"""/v1/files and /v1/batches in one process: owners, results, errors, cancellation, expiry, bounds."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from server.api.app import create_app
from server.api.batch_access import DAY_S, open_batches
from server.api.routes import batches, files
from server.batch import service
from server.batch.app_sender import PRIORITY, app_sender
from server.batch.store import Upload
from server.fairness.request_memory import RequestMemory
from server.http.middleware import for_batches
from tests.support.conditions import until
from tests.support.servers.fake_engine import READY, FakeEngine
from tests.support.servers.serving import MODEL, app_around, check_error, client_of, saying, state_around

pytestmark = pytest.mark.anyio

KEYS = ("first-key", "second-key")
RETENTION_DAYS = 2
MAX_LINE_BYTES = 4096
MAX_UPLOAD_BYTES = 3 << 20
NO_RESULTS = {"output_file_id": None, "error_file_id": None}


class Server:
    """An app with files and batches. `clients`: one for each of KEYS."""

    def __init__(self, folder: Path, engine: FakeEngine) -> None:
        self.engine = engine
        state = state_around(engine)
        app = create_app(state)
        inner = for_batches(
            app, max_body_bytes=1 << 20, request_memory=RequestMemory(1 << 30), on_http=state.metrics.http
        )
        self.access = open_batches(
            folder,
            KEYS,
            lambda tenant: app_sender(inner, tenant, by_priority=True),
            max_num_queued=1024,
            retention_days=RETENTION_DAYS,
            max_line_bytes=MAX_LINE_BYTES,
        )
        app.state.batches = self.access
        limited = app_around(state, api_keys=KEYS, app=app, max_upload_bytes=MAX_UPLOAD_BYTES)
        transport = httpx.ASGITransport(limited, raise_app_exceptions=False)
        self.clients = [
            httpx.AsyncClient(transport=transport, base_url="http://smoe", headers={"authorization": f"Bearer {key}"})
            for key in KEYS
        ]

    async def start(self, lines: list[bytes], **changes: Any) -> str:
        """Upload lines as the first tenant and return the id of their batch."""
        uploaded = await upload(self.clients[0], b"\n".join(lines))
        body = {"input_file_id": uploaded.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        created = await self.clients[0].post("/v1/batches", json=body | changes)
        assert created.status_code == 200, created.text
        return str(created.json()["id"])

    async def batch(self, batch_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.clients[0].get(f"/v1/batches/{batch_id}")).json()
        return found

    async def ended(self, batch_id: str, status: str) -> dict[str, Any]:
        """Return the batch as soon as it has the status."""
        store = self.access.store
        await until(lambda: (store.get("batches", self.access.owners[0], batch_id) or {})["status"] == status)
        return await self.batch(batch_id)

    async def results(self, file_id: str) -> dict[str, dict[str, Any]]:
        text = (await self.clients[0].get(f"/v1/files/{file_id}/content")).text
        lines = [json.loads(line) for line in text.splitlines()]
        assert len({line["custom_id"] for line in lines}) == len(lines)
        return {line["custom_id"]: line for line in lines}


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[None]:
    """Run batches inside this block."""
    task = asyncio.create_task(server.access.service.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def upload(client: httpx.AsyncClient, content: bytes, purpose: str = "batch") -> httpx.Response:
    return await client.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": purpose})


def line(name: str, url: str = "/v1/completions", **body: Any) -> bytes:
    fields = {"custom_id": name, "method": "POST", "url": url, "body": {"model": MODEL, "prompt": name, **body}}
    return json.dumps(fields).encode()


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path, FakeEngine(saying("fine")))


async def test_answers_and_errors_are_two_files_and_each_line_is_in_one(server: Server) -> None:
    async with running(server):
        batch_id = await server.start([line("a"), line("bad", temperature=9), line("b")], metadata={"job": "1"})
        batch = await server.ended(batch_id, "completed")
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert batch["metadata"] == {"job": "1"} and batch["completed_at"] and batch["errors"] is None
    good, bad = await server.results(batch["output_file_id"]), await server.results(batch["error_file_id"])
    assert set(good) == {"a", "b"} and set(bad) == {"bad"}
    assert good["a"]["response"]["body"]["choices"][0]["text"] == " fine" and good["a"]["response"]["request_id"]
    assert bad["bad"]["response"]["status_code"] == 400 and "temperature" in bad["bad"]["error"]["message"]


async def test_embeddings_run_in_batches(server: Server) -> None:
    server.engine.ready = msgspec.structs.replace(READY, embeds=True)
    async with running(server):
        lines = [line("a", url="/v1/embeddings", input=[5, 6]), line("b", url="/v1/embeddings", input="text")]
        batch = await server.ended(await server.start(lines, endpoint="/v1/embeddings"), "completed")
    good = await server.results(batch["output_file_id"])
    assert len(good["a"]["response"]["body"]["data"][0]["embedding"]) == 8 and set(good) == {"a", "b"}


async def test_lines_run_as_their_tenant_behind_the_requests_of_clients(server: Server) -> None:
    async with running(server):
        await server.ended(await server.start([line("a", priority=-5)]), "completed")
    (request,) = server.engine.submitted
    assert (request.tenant, request.priority) == (0, PRIORITY)


async def test_one_key_never_sees_the_files_and_batches_of_another(server: Server) -> None:
    async with running(server):
        batch_id = await server.start([line("a")])
        output = (await server.ended(batch_id, "completed"))["output_file_id"]
    other = server.clients[1]
    for path in (f"/v1/files/{output}", f"/v1/files/{output}/content"):
        check_error(await other.get(path), 404, "file_not_found", "file_id")
    check_error(await other.delete(f"/v1/files/{output}"), 404, "file_not_found", "file_id")
    check_error(await other.get(f"/v1/batches/{batch_id}"), 404, "batch_not_found", "batch_id")
    check_error(await other.post(f"/v1/batches/{batch_id}/cancel"), 404, "batch_not_found", "batch_id")
    check_error(await other.get("/v1/files", params={"after": output}), 404, "file_not_found", "after")
    body = {"input_file_id": output, "endpoint": "/v1/completions", "completion_window": "24h"}
    check_error(await other.post("/v1/batches", json=body), 404, "file_not_found", "input_file_id")
    assert (await other.get("/v1/files")).json()["data"] == (await other.get("/v1/batches")).json()["data"] == []
    assert (await server.clients[0].get(f"/v1/files/{output}")).status_code == 200


async def test_lists_come_in_pages(server: Server) -> None:
    client = server.clients[0]
    ids = [(await upload(client, b"x")).json()["id"] for _ in range(3)]
    first = (await client.get("/v1/files", params={"limit": 2})).json()
    assert [file["id"] for file in first["data"]] == [ids[2], ids[1]] and first["has_more"]
    rest = (await client.get("/v1/files", params={"limit": 2, "after": first["last_id"]})).json()
    assert [file["id"] for file in rest["data"]] == [ids[0]] and not rest["has_more"]
    oldest = (await client.get("/v1/files", params={"order": "asc"})).json()
    assert [file["id"] for file in oldest["data"]] == ids
    check_error(await client.get("/v1/files", params={"limit": "0"}), 400, "invalid_value", "limit")


@pytest.mark.parametrize(
    ("lines", "number", "reason"),
    [
        ([line("a"), b"{"], 2, "not a JSON object"),
        ([line("a"), line("a")], 2, "the custom_id of an earlier line"),
        ([line("a", url="/v1/chat/completions")], 1, "url must be the batch's endpoint"),
        ([line("a"), line("b", user="x" * MAX_LINE_BYTES)], 2, f"longer than {MAX_LINE_BYTES} bytes"),
        ([line("a"), b"", b" ", line("b", url="/v1/responses")], 4, "url must be the batch's endpoint"),
        ([b" "], 1, "the file has no requests"),
    ],
    ids=str,
)
async def test_a_bad_file_fails_its_batch_and_names_the_line(
    server: Server, lines: list[bytes], number: int, reason: str
) -> None:
    async with running(server):
        batch = await server.ended(await server.start(lines), "failed")
    (error,) = batch["errors"]["data"]
    assert error["line"] == number and reason in error["message"] and "/" not in error["message"].replace("/v1/", "")
    assert not server.engine.submitted


async def test_a_cancelled_batch_keeps_the_answers_that_it_has(tmp_path: Path) -> None:
    engine = FakeEngine(saying("fine"), held=True)
    server = Server(tmp_path, engine)
    async with running(server):
        batch_id = await server.start([line("a"), line("b")])
        await engine.until(lambda: len(engine.submitted) == 2)
        held = await server.clients[0].delete(f"/v1/files/{(await server.batch(batch_id))['input_file_id']}")
        check_error(held, 400, "file_in_use", "file_id")
        assert (await server.clients[0].post(f"/v1/batches/{batch_id}/cancel")).json()["status"] == "cancelling"
        batch = await server.ended(batch_id, "cancelled")
    assert engine.aborted == {request.request_id for request in engine.submitted}
    assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 0} and batch["output_file_id"] is None
    again = await server.clients[0].post(f"/v1/batches/{batch_id}/cancel")
    assert again.json()["status"] == "cancelled"


async def test_an_expired_batch_names_the_requests_without_an_answer(server: Server) -> None:
    batch_id = await server.start([line("a")])
    server.access.store.clock = later_than(server.access.store.clock, batches.WINDOW_S)
    async with running(server):
        batch = await server.ended(batch_id, "expired")
    assert (await server.results(batch["error_file_id"]))["a"]["error"]["code"] == "batch_expired"
    assert batch["output_file_id"] is None and not server.engine.submitted


def later_than(clock: Callable[[], float], seconds: float) -> Callable[[], float]:
    return lambda: clock() + seconds


async def test_an_ended_batch_and_its_results_are_deleted_after_their_days(server: Server) -> None:
    store, [client, _] = server.access.store, server.clients
    async with running(server):
        batch_id = await server.start([line("a"), line("bad", temperature=9)])
        batch = await server.ended(batch_id, "completed")
        held = await server.start([line("b")])
        await server.ended(held, "completed")
        store.clock = later_than(store.clock, RETENTION_DAYS * DAY_S)
        server.access.service.wake()
        await until(lambda: store.get("batches", server.access.owners[0], held) is None)
    assert (await client.get(f"/v1/batches/{batch_id}")).status_code == 404
    for name in ("output_file_id", "error_file_id"):
        assert (await client.get(f"/v1/files/{batch[name]}")).status_code == 404
        assert not store.content_path(batch[name]).exists()
    assert (await client.get(f"/v1/files/{batch['input_file_id']}/content")).status_code == 200


async def test_a_key_keeps_its_newest_ended_batches(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_ENDED", 2)
    store, owners = server.access.store, server.access.owners
    others = store.add_batch(owners[1], {"status": "failed", "failed_at": store.clock(), **NO_RESULTS})
    async with running(server):
        ids = [await server.start([line(str(i))]) for i in range(4)]
        await server.ended(ids[-1], "completed")
        await until(lambda: store.get("batches", owners[0], ids[1]) is None)
    kept = {batch["id"] for batch in store.page("batches", owners[0], None, 10, newest_first=True)}
    assert kept == set(ids[2:]) and store.get("batches", owners[1], others["id"]) is not None
    assert (
        sum(file["purpose"] == "batch_output" for file in store.page("files", owners[0], None, 99, newest_first=True))
        == 2
    )


async def test_a_batch_goes_on_with_the_rest_when_the_server_starts_again(tmp_path: Path) -> None:
    engine = FakeEngine(saying("fine"), held=True)
    server = Server(tmp_path, engine)
    lines = [line(str(i)) for i in range(20)]
    async with running(server):
        batch_id = await server.start(lines)
        await engine.until(lambda: len(engine.submitted) == 16)
        while engine.step():
            pass
        await until(lambda: server.access.service.with_counts({"id": batch_id})["request_counts"]["completed"] == 16)
    later = Server(tmp_path, FakeEngine(saying("fine")))
    async with running(later):
        batch = await later.ended(batch_id, "completed")
    assert len(later.engine.submitted) == 4
    assert batch["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
    assert set(await later.results(batch["output_file_id"])) == {str(i) for i in range(20)}


async def test_two_servers_on_one_folder_do_not_run_a_batch_twice(tmp_path: Path) -> None:
    held, second = (Server(tmp_path, FakeEngine(saying("fine"), held=True)), Server(tmp_path, FakeEngine(saying("x"))))
    async with running(second), running(held):
        first_id = await second.start([line("a")])
        await second.ended(first_id, "completed")
        batch_id = await held.start([line("b")])
        held.access.service.wake()
        second.access.service.wake()
        await second.ended(batch_id, "completed")
    assert not held.engine.submitted and len(second.engine.submitted) == 2


async def test_without_a_folder_one_line_names_the_flag() -> None:
    async with client_of(state_around(FakeEngine(saying("x")))) as client:
        for response in (await client.get("/v1/files"), await client.post("/v1/batches", json={})):
            check_error(response, 404, "batches_disabled")
            assert "--batch-dir" in response.json()["error"]["message"]


async def test_a_key_has_bounds_on_files_and_open_batches(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 2)
    monkeypatch.setattr(batches, "MAX_OPEN", 1)
    await server.start([line("a")])
    client = server.clients[0]
    file_id = (await upload(client, line("b"))).json()["id"]
    check_error(await upload(client, line("c")), 400, "storage_full")
    assert (await upload(server.clients[1], b"x")).status_code == 200
    body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    check_error(await client.post("/v1/batches", json=body), 429, "too_many_batches")
    assert (await client.delete(f"/v1/files/{file_id}")).json() == {"id": file_id, "object": "file", "deleted": True}
    check_error(await client.get(f"/v1/files/{file_id}/content"), 404, "file_not_found", "file_id")
    assert (await upload(client, b"y")).status_code == 200


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
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


async def test_an_upload_that_fails_leaves_nothing(server: Server, tmp_path: Path) -> None:
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


async def test_a_key_uploads_a_few_files_at_a_time(server: Server) -> None:
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


async def test_bad_uploads_are_one_line(server: Server) -> None:
    client = server.clients[0]
    check_error(await upload(client, b"x", purpose="fine-tune"), 400, "invalid_value", "purpose")
    check_error(await upload(client, b""), 400, "invalid_value", "file")
    check_error(await upload(client, b"x" * MAX_UPLOAD_BYTES), 413, "request_too_large")
    check_error(await client.post("/v1/files", json={}), 415, "unsupported_content_type", "Content-Type")
    alone = await client.post("/v1/files", files={"file": ("a", b"x")})
    check_error(alone, 400, "missing_required_parameter", "purpose")
    more = {"purpose": "batch", "expires_after[seconds]": "9"}
    check_error(await client.post("/v1/files", files={"file": ("a", b"x")}, data=more), 400, "unsupported_parameter")
