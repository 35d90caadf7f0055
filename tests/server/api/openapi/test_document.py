"""server/openapi: nothing is served that is not described, and the page shows all of it."""

from html.parser import HTMLParser

import pytest
from fastapi.routing import APIRoute

from server.api.openapi import Facts, document, page
from server.api.openapi.operations import OPERATIONS
from server.api.routes import (
    chat,
    completions,
    docs,
    experts,
    health,
    messages,
    metrics,
    models,
    playground,
    responses,
    tokenize,
)
from tests.support.fake_engine import FakeEngine
from tests.support.serving import MODEL, client_of, saying, state_around

FACTS = Facts((MODEL,), vocab_size=100, max_model_len=50)


ROUTERS = (chat, completions, docs, experts, health, messages, metrics, models, playground, responses, tokenize)


def routes_of(app: object) -> set[tuple[str, str]]:
    """(method, path) of each route; HEAD goes with GET."""
    found: set[tuple[str, str]] = set()
    pending = list(app.routes)  # type: ignore[attr-defined]
    while pending:
        route = pending.pop()
        pending += getattr(route, "routes", [])
        if isinstance(route, APIRoute):
            path = route.path.replace(":path", "")
            found |= {(method.lower(), path) for method in route.methods - {"HEAD"}}
    return found


def test_every_route_is_described_and_every_description_has_its_route() -> None:
    described = {(operation.method, operation.path) for operation in OPERATIONS}
    routed = set().union(*(routes_of(module.router) for module in ROUTERS))
    assert routed == described


def test_bounds_are_those_of_the_model_that_is_served() -> None:
    schemas = document(FACTS, "1")["components"]["schemas"]
    properties = schemas["CompletionRequest"]["properties"]
    assert properties["model"]["enum"] == [MODEL]
    assert properties["stop_token_ids"]["anyOf"][0]["items"]["maximum"] == 99
    assert properties["max_tokens"]["anyOf"][0] == {"type": "integer", "minimum": 0, "maximum": 50}
    assert properties["seed"]["anyOf"][0]["maximum"] == 2**63 - 1
    assert properties["suffix"] == {"enum": ["", None]}
    assert {"type": "null"} not in properties["stream"].get("anyOf", [])


def test_every_reference_leads_somewhere() -> None:
    described = document(FACTS, "1")
    text = str(described)
    names = {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(described["components"]["schemas"])


class Tags(HTMLParser):
    """The tags and links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: set[str] = set()
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links |= {value for name, value in attrs if name in ("href", "src") and value}
        self.ids |= {value for name, value in attrs if name == "id" and value}


def test_the_page_names_every_operation_and_field_and_loads_nothing() -> None:
    described = document(FACTS, "1")
    html = page(described)
    tags = Tags()
    tags.feed(html)
    assert not tags.tags & {"script", "link", "img", "iframe"}
    assert {link.removeprefix("#") for link in tags.links} - {"openapi.json"} <= tags.ids
    for operation in OPERATIONS:
        assert f"{operation.method.upper()} {operation.path}" in html
    for schema in described["components"]["schemas"].values():
        for field in schema.get("properties", {}):
            assert f"<code>{field}</code>" in html


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
