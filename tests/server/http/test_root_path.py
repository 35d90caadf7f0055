"""URLs behind a proxy's prefix that also begins URLs of the server, as /api and /v1 do."""

from typing import Any

import httpx
import pytest

from server.observability.access_log import AccessLog, RequestRecord
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import check_error, client_of, http_counts, saying, state_around

pytestmark = pytest.mark.anyio
KEY = {"authorization": "Bearer k"}
CHAT = {"model": "alias", "messages": [{"role": "user", "content": "Hi"}], "stream": False}


def behind(root_path: str, **settings: Any) -> httpx.AsyncClient:
    return client_of(state_around(FakeEngine(saying("a"))), root_path=root_path, **settings)


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_ollamas_api_answers_below_its_own_first_part(prefix: str) -> None:
    async with behind("/api") as client:
        assert (await client.get(f"{prefix}/api/tags")).json()["models"]
        assert (await client.post(f"{prefix}/api/chat", json=CHAT)).json()["message"]["content"] == "a"
        assert (await client.get(f"{prefix}/v1/models")).status_code == 200
        assert (await client.get(f"{prefix}/playground/main.js")).status_code == 200


@pytest.mark.parametrize(
    ("root_path", "path"),
    [
        ("/v1", "/v1/models"),
        ("/v1", "/v1/v1/models"),
        ("/v1", "/v1/models/test/model"),
        ("/v1", "/v1/v1/models/test/model"),
        ("/v1", "/health"),
        ("/v1", "/v1/health"),
        ("/v1/models", "/v1/models/v1/models"),
        ("/health", "/health"),
        ("/health", "/health/live"),
        ("/health", "/health/health/live"),
        ("/playground", "/playground/main.js"),
        ("/playground", "/playground/playground/main.js"),
        ("/playground", "/playground/v1/models"),
    ],
)
async def test_a_prefix_may_begin_the_servers_own_urls(root_path: str, path: str) -> None:
    async with behind(root_path) as client:
        assert (await client.get(path)).status_code == 200


async def test_a_path_with_two_readings_is_the_one_behind_a_proxy_that_removes_the_prefix() -> None:
    async with behind("/api") as client:
        ollamas, own = (await client.get("/api/api/version")).json(), (await client.get("/version")).json()
        assert ollamas != own
        assert (await client.get("/api/version")).json() == ollamas


@pytest.mark.parametrize("path", ["/api/chatt", "/api/api/chatt", "/api/pull"])
async def test_errors_of_ollamas_api_keep_their_shape_below_the_prefix(path: str) -> None:
    async with behind("/api", api_keys=("k",)) as client:
        assert isinstance((await client.get(path)).json()["error"], str)
        unknown = await client.get(path, headers=KEY)
    assert unknown.status_code == 404
    assert isinstance(unknown.json()["error"], str)


async def test_errors_of_the_other_apis_keep_their_shapes_below_the_prefix() -> None:
    async with behind("/api") as client:
        check_error(await client.get("/api/v1/modelz"), 404, "unknown_url")
    async with behind("/v1") as client:
        for path in ("/v1/messages", "/v1/v1/messages"):
            assert (await client.post(path, json={})).json()["type"] == "error"
        check_error(await client.get("/v1/modelz"), 404, "unknown_url")


@pytest.mark.parametrize("root_path", ["/api", "/llm", "/a/b c"])
async def test_the_prefix_alone_leads_to_the_playground_without_a_key(root_path: str) -> None:
    async with behind(root_path, api_keys=("k",)) as client:
        for send in (client.get, client.head):
            reply = await send(root_path, follow_redirects=True)
            assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
            assert reply.url.path == f"{root_path}/"
        assert (await client.post(root_path, headers=KEY)).status_code == 405


@pytest.mark.parametrize("root_path", ["/api", "/v1", "/llm", "/health"])
@pytest.mark.parametrize("is_below", [True, False])
async def test_only_open_urls_need_no_key_with_and_without_the_prefix(root_path: str, *, is_below: bool) -> None:
    prefix = root_path if is_below else ""
    async with behind(root_path, api_keys=("k",)) as client:
        for path in ("/", "/health", "/health/live", "/metrics", "/playground/main.js"):
            assert (await client.get(prefix + path)).status_code == 200
        for path in ("/v1/models", "/api/tags", "/docs", "/load"):
            assert (await client.get(prefix + path)).status_code == 401


async def test_a_request_is_logged_with_the_url_that_arrived_and_counted_by_its_route() -> None:
    records: list[RequestRecord] = []

    class Records(AccessLog):
        def request_ended(self, record: RequestRecord, status: int | None, *, is_probe: bool = False) -> None:
            records.append(record)

    state = state_around(FakeEngine(saying("a")))
    async with client_of(state, root_path="/api", access_log=Records()) as client:
        for path in ("/v1/models", "/api/v1/models", "/api/tags"):
            await client.get(path)
    assert [(record.path, record.route) for record in records] == [
        ("/v1/models", "/v1/models"),
        ("/api/v1/models", "/v1/models"),
        ("/api/tags", "/api/tags"),
    ]
    assert http_counts(state)["/v1/models", "GET", "200"] == 2
