"""The OpenAPI document describes every route, and the page shows all of the document."""

from html.parser import HTMLParser
from importlib import import_module
from pkgutil import iter_modules

import pytest
from fastapi.routing import APIRoute

from server.api import routes
from server.api.app import ROUTERS, ROUTES
from server.api.openapi import Facts, document, page
from server.api.openapi.descriptions import NOT_SUPPORTED
from server.errors import ANTHROPIC_PATH
from tests.support.servers.serving import MODEL

FACTS = Facts((MODEL,), vocab_size=100, max_model_len=50)
PATHS = document(ROUTES, FACTS, "1")["paths"]
HEALTH = {(path, "503") for path in ("/health", "/health/ready", "/health/live", "/ping")}
OPERATIONS = [(method, path) for path, methods in PATHS.items() for method in methods]


def test_every_route_module_is_served_and_every_route_described() -> None:
    modules = [import_module(f"{routes.__name__}.{module.name}") for module in iter_modules(routes.__path__)]
    assert {id(module.router) for module in modules} == set(map(id, ROUTERS))
    for route in ROUTES:
        assert isinstance(route, APIRoute)
        assert route.summary and 200 in route.responses, route.path
    for path, methods in PATHS.items():
        served = [route.methods for route in ROUTES if isinstance(route, APIRoute) and route.path_format == path]
        assert {method.lower() for method in set().union(*served)} - {"head"} == set(methods)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_errors_have_the_shape_of_their_api(method: str, path: str) -> None:
    responses = PATHS[path][method]["responses"]
    errors = [response for status, response in responses.items() if int(status) >= 400 and (path, status) not in HEALTH]
    name = (
        "AnthropicError" if path.startswith(ANTHROPIC_PATH) else "OllamaError" if path.startswith("/api/") else "Error"
    )
    expected = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    assert errors and all(error["content"] == expected for error in errors)


def test_bounds_are_those_of_the_model_that_is_served() -> None:
    schemas = document(ROUTES, FACTS, "1")["components"]["schemas"]
    properties = schemas["CompletionRequest"]["properties"]
    assert properties["model"]["anyOf"][0]["enum"] == [MODEL]
    assert properties["stop_token_ids"]["anyOf"][0]["items"]["maximum"] == 99
    assert properties["max_tokens"]["anyOf"][0] == {"type": "integer", "minimum": 0, "maximum": 50}
    assert properties["max_tokens"]["anyOf"][1] == {"type": "integer", "const": -1}
    assert properties["seed"]["anyOf"][0]["maximum"] == 2**63 - 1
    assert properties["suffix"] == {"enum": ["", None], "description": NOT_SUPPORTED}
    assert {"type": "null"} in properties["stream"]["anyOf"]


def test_every_reference_leads_somewhere() -> None:
    described = document(ROUTES, FACTS, "1")
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
    described = document(ROUTES, FACTS, "1")
    html = page(described)
    tags = Tags()
    tags.feed(html)
    assert not tags.tags & {"script", "link", "img", "iframe"}
    assert {link.removeprefix("#") for link in tags.links} - {"openapi.json", "./"} <= tags.ids
    for method, path in OPERATIONS:
        assert f"{method.upper()} {path}" in html
    for schema in described["components"]["schemas"].values():
        for field in schema.get("properties", {}):
            assert f"<code>{field}</code>" in html
