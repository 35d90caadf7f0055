"""/v1/batches in one process: owners, results, errors, cancellation, expiry, bounds."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from server.api.batch_access import DAY_S
from server.api.routes import batches, files
from server.batch import service
from server.batch.app_sender import PRIORITY
from server.generation.state import LoraOptions
from tests.support.conditions import until
from tests.support.servers.batch_server import MAX_LINE_BYTES, RETENTION_DAYS, BatchServer, line, running, upload
from tests.support.servers.fake_engine import READY, FakeEngine
from tests.support.servers.serving import check_error, client_of, saying, state_around

pytestmark = pytest.mark.anyio

NO_RESULTS = {"output_file_id": None, "error_file_id": None}


@pytest.fixture
def server(tmp_path: Path) -> BatchServer:
    return BatchServer(tmp_path, FakeEngine(saying("fine")))


async def test_answers_and_errors_are_two_files_and_each_line_is_in_one(server: BatchServer) -> None:
    async with running(server):
        batch_id = await server.start([line("a"), line("bad", temperature=9), line("b")], metadata={"job": "1"})
        batch = await server.ended(batch_id, "completed")
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert batch["metadata"] == {"job": "1"} and batch["completed_at"] and batch["errors"] is None
    good, bad = await server.results(batch["output_file_id"]), await server.results(batch["error_file_id"])
    assert set(good) == {"a", "b"} and set(bad) == {"bad"}
    assert await server.listed("batch") == {batch["input_file_id"]}
    assert await server.listed("batch_output") == {batch["output_file_id"], batch["error_file_id"]}
    assert good["a"]["response"]["body"]["choices"][0]["text"] == " fine" and good["a"]["response"]["request_id"]
    assert bad["bad"]["response"]["status_code"] == 400 and "temperature" in bad["bad"]["error"]["message"]


async def test_a_line_says_what_was_ignored_of_its_request(server: BatchServer) -> None:
    async with running(server):
        batch = await server.ended(await server.start([line("a", temprature=1), line("b")]), "completed")
    results = await server.results(batch["output_file_id"])
    assert results["a"]["response"]["headers"] == {"x-smoe-ignored-params": "temprature"}
    assert "headers" not in results["b"]["response"]


async def test_embeddings_run_in_batches(server: BatchServer) -> None:
    server.engine.ready = msgspec.structs.replace(READY, embeds=True)
    async with running(server):
        lines = [line("a", url="/v1/embeddings", input=[5, 6]), line("b", url="/v1/embeddings", input="text")]
        batch = await server.ended(await server.start(lines, endpoint="/v1/embeddings"), "completed")
    good = await server.results(batch["output_file_id"])
    assert len(good["a"]["response"]["body"]["data"][0]["embedding"]) == 8 and set(good) == {"a", "b"}


async def test_a_line_whose_adapter_was_unloaded_before_it_runs_is_an_error_that_says_so(server: BatchServer) -> None:
    server.state.lora = LoraOptions(at_run_time=True)
    client = server.clients[0]
    for name in ("sql", "poems"):
        adapter = {"lora_name": name, "lora_path": f"/adapters/{name}"}
        assert (await client.post("/v1/load_lora_adapter", json=adapter)).status_code == 200
    lines = [line(name, model=name) for name in ("sql", "poems", "other")]
    batch_id = await server.start(lines)
    assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})).status_code == 200
    async with running(server):
        batch = await server.ended(batch_id, "completed")
    assert batch["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
    assert set(await server.results(batch["output_file_id"])) == {"poems"}
    errors = {name: found["error"] for name, found in (await server.results(batch["error_file_id"])).items()}
    assert errors["sql"]["code"] == errors["other"]["code"] == "404"
    assert errors["sql"]["message"].startswith("This LoRA adapter was unloaded; send one of:")
    assert errors["other"]["message"].startswith("This model is not served here; send one of:")


async def test_lines_run_as_their_tenant_behind_the_requests_of_clients(server: BatchServer) -> None:
    async with running(server):
        await server.ended(await server.start([line("a", priority=-5)]), "completed")
    (request,) = server.engine.submitted
    assert (request.tenant, request.priority) == (0, PRIORITY)


async def test_one_key_never_sees_the_files_and_batches_of_another(server: BatchServer) -> None:
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
    server: BatchServer, lines: list[bytes], number: int, reason: str
) -> None:
    async with running(server):
        batch = await server.ended(await server.start(lines), "failed")
    (error,) = batch["errors"]["data"]
    assert error["line"] == number and reason in error["message"] and "/" not in error["message"].replace("/v1/", "")
    assert not server.engine.submitted


async def test_a_cancelled_batch_keeps_the_answers_that_it_has(tmp_path: Path) -> None:
    engine = FakeEngine(saying("fine"), held=True)
    server = BatchServer(tmp_path, engine)
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


async def test_an_expired_batch_names_the_requests_without_an_answer(server: BatchServer) -> None:
    batch_id = await server.start([line("a")])
    server.access.store.clock = later_than(server.access.store.clock, batches.WINDOW_S)
    async with running(server):
        batch = await server.ended(batch_id, "expired")
    assert (await server.results(batch["error_file_id"]))["a"]["error"]["code"] == "batch_expired"
    assert batch["output_file_id"] is None and not server.engine.submitted


def later_than(clock: Callable[[], float], seconds: float) -> Callable[[], float]:
    return lambda: clock() + seconds


async def test_an_ended_batch_and_its_results_are_deleted_after_their_days(server: BatchServer) -> None:
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


async def test_a_key_keeps_its_newest_ended_batches(server: BatchServer, monkeypatch: pytest.MonkeyPatch) -> None:
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
    server = BatchServer(tmp_path, engine)
    lines = [line(str(i)) for i in range(20)]
    async with running(server):
        batch_id = await server.start(lines)
        await engine.until(lambda: len(engine.submitted) == 16)
        while engine.step():
            pass
        await until(lambda: server.access.service.with_counts({"id": batch_id})["request_counts"]["completed"] == 16)
    later = BatchServer(tmp_path, FakeEngine(saying("fine")))
    async with running(later):
        batch = await later.ended(batch_id, "completed")
    assert len(later.engine.submitted) == 4
    assert batch["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
    assert set(await later.results(batch["output_file_id"])) == {str(i) for i in range(20)}


async def test_two_servers_on_one_folder_do_not_run_a_batch_twice(tmp_path: Path) -> None:
    held, second = (
        BatchServer(tmp_path, FakeEngine(saying("fine"), held=True)),
        BatchServer(tmp_path, FakeEngine(saying("x"))),
    )
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


async def test_a_key_has_bounds_on_files_and_open_batches(server: BatchServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 2)
    monkeypatch.setattr(batches, "MAX_OPEN", 1)
    await server.start([line("a")])
    client = server.clients[0]
    file_id = (await upload(client, line("b"))).json()["id"]
    check_error(await upload(client, line("c")), 400, "storage_full")
    assert (await upload(server.clients[1], b"x")).status_code == 200
    body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    refused = await client.post("/v1/batches", json=body)
    check_error(refused, 429, "too_many_batches")
    assert int(refused.headers["retry-after"]) >= 1
    assert (await client.delete(f"/v1/files/{file_id}")).json() == {"id": file_id, "object": "file", "deleted": True}
    check_error(await client.get(f"/v1/files/{file_id}/content"), 404, "file_not_found", "file_id")
    assert (await upload(client, b"y")).status_code == 200
