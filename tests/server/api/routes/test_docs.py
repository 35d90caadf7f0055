"""GET /openapi.json and GET /docs."""

import httpx
import pytest

from server.api.routes import docs
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import app_around, client_of, listening, saying, state_around


@pytest.mark.anyio
async def test_the_description_is_served_while_the_model_loads() -> None:
    state = state_around(FakeEngine(saying("a")))
    state.engine.ready = None
    async with client_of(state) as client:
        assert (await client.get("/openapi.json")).json()["openapi"] == "3.1.0"
        assert (await client.get("/docs")).headers["content-type"].startswith("text/html")


@pytest.mark.anyio
async def test_the_description_is_made_once_and_not_at_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        first = (await client.get("/openapi.json")).content
        monkeypatch.setattr(docs, "document", lambda *_: pytest.fail("made again"))
        assert (await client.get("/openapi.json")).content == first
        assert (await client.get("/docs")).status_code == 200


@pytest.mark.anyio
async def test_no_page_may_frame_the_description() -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        policy = (await client.get("/docs")).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["frame-ancestors"] == rules["default-src"] == rules["form-action"] == rules["base-uri"] == "'none'"


@pytest.mark.anyio
async def test_the_description_has_the_prefix_of_a_proxy() -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        assert "servers" not in (await client.get("/openapi.json")).json()
    app = app_around(state_around(FakeEngine(saying("a"))), root_path="/api")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://smoe") as client:
        assert (await client.get("/openapi.json")).json()["servers"] == [{"url": "/api"}]


@pytest.mark.anyio
async def test_the_pages_examples_name_the_address_that_the_request_came_to_and_no_text_of_the_client() -> None:
    async with listening(state_around(FakeEngine(saying("a")))) as url, httpx.AsyncClient(base_url=url) as client:
        page = (await client.get("/docs", headers={"host": "elsewhere.example"})).text
    assert f"curl {url}/v1/models" in page
    assert "elsewhere" not in page
