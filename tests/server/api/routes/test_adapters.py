"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter."""

import asyncio
from typing import Any

import pytest

from engine.types import Request
from server.api.routes import adapters
from server.generation.embedding import MAX_PART
from server.generation.state import LoraOptions
from tests.support.conditions import until
from tests.support.servers.fake_engine import EOS, FakeEngine
from tests.support.servers.serving import MODEL, check_error, client_of, saying, state_around

pytestmark = pytest.mark.anyio

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
SQL = {"lora_name": "sql", "lora_path": "/adapters/sql"}


def a_client(engine: FakeEngine, *, at_run_time: bool = True) -> Any:
    state = state_around(engine)
    state.lora = LoraOptions(at_run_time=at_run_time)
    return client_of(state)


async def test_an_adapter_is_served_from_its_loading_to_its_unloading() -> None:
    engine = FakeEngine(saying("a"))
    async with a_client(engine) as client:
        loaded = await client.post(LOAD, json={**SQL, "load_inplace": False})
        assert loaded.json() == (await client.get("/v1/models/sql")).json()
        assert (loaded.json()["id"], loaded.json()["parent"]) == ("sql", MODEL)
        body = {"model": "sql", "prompt": "It was"}
        assert (await client.post("/v1/completions", json=body)).json()["model"] == "sql"
        assert engine.submitted[-1].adapter == "/adapters/sql"
        check_error(await client.post(LOAD, json=SQL), 400, "invalid_value", "lora_name")
        unloaded = await client.post(UNLOAD, json={"lora_name": "sql"})
        assert unloaded.json() == {"id": "sql", "object": "model", "deleted": True}
        check_error(await client.post("/v1/completions", json=body), 404, "model_not_found", "model")
        check_error(await client.post(UNLOAD, json={"lora_name": "sql"}), 404, "model_not_found", "lora_name")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "It was", "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Who?"}]}),
        ("/v1/embeddings", {"input": ["Who?"] * (MAX_PART + 1)}),
    ],
)
async def test_an_adapter_is_kept_until_the_request_has_ended(path: str, body: dict[str, Any]) -> None:
    """Also while a list of texts has none in the engine, between two parts."""
    held: list[int] = []

    def script(request: Request) -> list[int]:
        held.append(engine.held_adapters[request.adapter])
        return [5, EOS]

    engine = FakeEngine(script)
    state = state_around(engine)
    state.lora, state.embeddings = LoraOptions(at_run_time=True), True
    async with client_of(state) as client:
        await client.post(LOAD, json=SQL)
        assert (await client.post(path, json={"model": "sql", **body})).status_code == 200
        assert set(held) == {1} and not engine.held_adapters.total()
        await client.post(path, json={**body})
        assert not engine.held_adapters.total()


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        (LOAD, {**SQL, "lora_path": "/adapters/bad"}, 400, "invalid_value", "lora_path"),
        (LOAD, {**SQL, "lora_path": ""}, 400, "empty_string", "lora_path"),
        (LOAD, {**SQL, "lora_name": ""}, 400, "invalid_value", "lora_name"),
        (LOAD, {**SQL, "lora_name": " sql"}, 400, "invalid_value", "lora_name"),
        (LOAD, {**SQL, "lora_name": MODEL}, 400, "invalid_value", "lora_name"),
        (LOAD, {**SQL, "load_inplace": "yes"}, 400, "invalid_type", "load_inplace"),
        (LOAD, {**SQL, "load_inplace": True, "lora_name": MODEL}, 400, "invalid_value", "lora_name"),
        (LOAD, {**SQL, "load_inplace": True, "lora_path": "/adapters/bad"}, 400, "invalid_value", "lora_path"),
        (LOAD, {"lora_name": "sql"}, 400, "missing_required_parameter", "lora_path"),
        (UNLOAD, {}, 400, "missing_required_parameter", "lora_name"),
        (UNLOAD, {"lora_name": MODEL}, 404, "model_not_found", "lora_name"),
    ],
)
async def test_a_body_that_names_no_adapter_to_load_or_unload_is_refused(
    path: str, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    async with a_client(FakeEngine(saying("a"))) as client:
        check_error(await client.post(path, json=body), status, code, param)


async def test_an_adapter_is_replaced_only_if_the_request_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "MAX_ADAPTERS", 1)
    engine = FakeEngine(saying("a"))
    body = {"model": "sql", "prompt": "It was"}
    async with a_client(engine) as client:
        for path in ("/adapters/new", "/adapters/newer"):  # without one of the name, it is loaded
            loaded = await client.post(LOAD, json={"lora_name": "sql", "lora_path": path, "load_inplace": True})
            assert loaded.json()["id"] == "sql", loaded.text
            await client.post("/v1/completions", json=body)
            assert engine.submitted[-1].adapter == path
        bad = {**SQL, "lora_path": "/adapters/bad", "load_inplace": True}
        assert (await client.post(LOAD, json=bad)).status_code == 400
        check_error(await client.post(LOAD, json={**SQL, "lora_name": "b"}), 400, "invalid_value", "lora_name")
        await client.post("/v1/completions", json=body)
        assert engine.submitted[-1].adapter == "/adapters/newer"  # one that cannot be served replaces none


@pytest.mark.parametrize(
    ("name", "served", "message"),
    [
        (MODEL, ["sql"], "'lora_name' is the model itself, not a LoRA adapter; send one of: sql."),
        ("poems", ["sql"], "'lora_name' names no LoRA adapter that is served here; send one of: sql."),
        ("poems", [], "'lora_name' names no LoRA adapter that is served here; there are none."),
    ],
)
async def test_a_name_that_cannot_be_unloaded_has_its_reason(name: str, served: list[str], message: str) -> None:
    async with a_client(FakeEngine(saying("a"))) as client:
        for adapter in served:
            await client.post(LOAD, json={**SQL, "lora_name": adapter})
        assert (await client.post(UNLOAD, json={"lora_name": name})).json()["error"]["message"] == message


async def test_an_adapter_is_described_as_fine_tuned_and_created_when_it_was_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_900_000_000.0)
    async with a_client(FakeEngine(saying("a"))) as client:
        await client.post(LOAD, json=SQL)
        first, *_, last = (await client.get("/v1/models")).json()["data"]
        assert (first["type"], last["type"], last["created"]) == ("base", "fine-tuned", 1_900_000_000)
        assert "job" not in first and first["created"] < last["created"]


async def test_the_reason_of_a_bad_adapter_is_in_the_reply() -> None:
    async with a_client(FakeEngine(saying("a"))) as client:
        reply = await client.post(LOAD, json={**SQL, "lora_path": "/adapters/bad"})
        assert "/adapters/bad: no such directory" in reply.json()["error"]["message"]


async def test_no_more_adapters_than_the_bound_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "MAX_ADAPTERS", 2)
    async with a_client(FakeEngine(saying("a"))) as client:
        for name in ("one", "two"):
            assert (await client.post(LOAD, json={**SQL, "lora_name": name})).status_code == 200
        check_error(await client.post(LOAD, json=SQL), 400, "invalid_value", "lora_name")
        await client.post(UNLOAD, json={"lora_name": "one"})
        assert (await client.post(LOAD, json=SQL)).status_code == 200


async def test_loads_that_run_at_once_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "MAX_ADAPTERS", 2)
    engine = FakeEngine(saying("a"))
    engine.may_load.clear()
    async with a_client(engine) as client:
        loads = [asyncio.create_task(client.post(LOAD, json={**SQL, "lora_name": name})) for name in "abc"]
        await until(lambda: len(engine.loading_adapters) + sum(load.done() for load in loads) == 3)
        engine.may_load.set()
        replies = await asyncio.gather(*loads)
    assert sorted(reply.status_code for reply in replies) == [200, 200, 400]
    assert engine.ready is not None and len(engine.ready.adapters) == 2


async def test_without_an_engine_nothing_is_loaded() -> None:
    engine = FakeEngine(saying("a"))
    engine.phase = "dead"
    async with a_client(engine) as client:
        assert (await client.post(LOAD, json=SQL)).status_code == 503


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_the_urls_are_a_404_unless_the_operator_allows_them(path: str) -> None:
    async with a_client(FakeEngine(saying("a")), at_run_time=False) as client:
        reply = await client.post(path, json=SQL)
        check_error(reply, 404, "lora_disabled", None)
        assert "--enable-runtime-lora" in reply.json()["error"]["message"]
