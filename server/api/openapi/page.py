"""The description as one HTML page without scripts, which loads nothing from other servers."""

from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from server.api.openapi import snippets
from server.api.openapi.field_table import field_table, in_code

Json = Mapping[str, Any]

DEFAULT_URL = "http://127.0.0.1:8000"
PLAYGROUND = "./"  # relative, so that it works behind a proxy's prefix
IN_PLAYGROUND = ("/v1/completions", "/v1/chat/completions")


@cache
def style() -> str:
    """Read the style sheet, which is part of the page."""
    return Path(__file__).with_name("page.css").read_text()


def page(document: Json, base_url: str = DEFAULT_URL) -> str:
    """Render an OpenAPI document. `base_url`: the server's, for the examples; without a slash at its end."""
    info, schemas = document["info"], document["components"]["schemas"]
    others = [name for name in sorted(schemas) if name not in _bodies(document)]
    return "\n".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
            f"<title>{escape(info['title'])} API</title><style>{style()}</style>",
            "<nav aria-label='Contents'>",
            f"<a href='{PLAYGROUND}'>Playground</a><a href=openapi.json>openapi.json</a>",
            *_contents(document),
            "</nav><main>",
            f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{in_code(info['description'])}</p>",
            "<p>Fields with * are required; the others may also be null, which counts as absent.</p>",
            *_groups(document, base_url),
            "<h2 id='objects'>Objects</h2>",
            *(part for name in others for part in _object(name, schemas[name])),
            "</main>",
        ]
    )


def _bodies(document: Json) -> set[str]:
    """Return the names of the objects that are bodies of requests: their fields stand at the operation."""
    operations = (operation for methods in document["paths"].values() for operation in methods.values())
    return {_body_name(operation) for operation in operations}


def _body_name(operation: Json) -> str:
    """Return the name of the object that an operation takes; empty if it takes none that has a name."""
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    name: str = schema.get("$ref", "").rpartition("/")[2]
    return name


def _operations(document: Json, group: str) -> Iterator[tuple[str, str, Json]]:
    """Yield the operations of a group: method, path, operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if group in operation["tags"]:
                yield method.upper(), path, operation


def _contents(document: Json) -> Iterator[str]:
    for group in document["tags"]:
        yield f"<p>{escape(group['name'])}</p>"
        for method, path, operation in _operations(document, group["name"]):
            yield f"<a href='#{escape(operation['operationId'])}'>{method} {escape(path)}</a>"
    yield "<p>More</p><a href='#objects'>Objects</a>"


def _groups(document: Json, base_url: str) -> Iterator[str]:
    for group in document["tags"]:
        yield f"<h2>{escape(group['name'])}</h2><p>{escape(group['description'])}</p>"
        for method, path, operation in _operations(document, group["name"]):
            yield from _operation(method, path, operation, document["components"]["schemas"], base_url)


def _operation(method: str, path: str, operation: Json, schemas: Json, base_url: str) -> Iterator[str]:
    yield f"<h3 id='{escape(operation['operationId'])}'>{method} {escape(path)}</h3>"
    link = f" <a href='{PLAYGROUND}'>Try it in the playground</a>" if path in IN_PLAYGROUND else ""
    yield f"<p>{escape(operation['summary'])}{link}</p>"
    yield from _examples(method, path, operation, base_url)
    if parameters := operation.get("parameters"):
        fields = {one["name"]: {**one["schema"], "description": one["description"]} for one in parameters}
        yield field_table(fields, [one["name"] for one in parameters if one.get("required")], "In the URL")
    yield from _body(operation, schemas)
    yield from _reply(operation)


def _examples(method: str, path: str, operation: Json, base_url: str) -> Iterator[str]:
    """Yield the call in each language; one of them is open at a time."""
    for parameter in operation.get("parameters", ()):
        path = path.replace(f"{{{parameter['name']}}}", str(parameter.get("example")))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
    is_json = "application/json" in operation["responses"]["200"].get("content", {})
    texts = {
        "curl": snippets.curl(method, base_url, path, body),
        "Python": snippets.python(method, base_url, path, body, is_json=is_json),
    }
    name = escape(operation["operationId"])
    for title, text in texts.items():
        is_open = " open" if title == "curl" else ""
        shown = f"<pre tabindex=0><code>{escape(text)}</code></pre>"
        yield f"<details name='{name}'{is_open}><summary>{title}</summary>{shown}</details>"


def _body(operation: Json, schemas: Json) -> Iterator[str]:
    if name := _body_name(operation):
        yield f"<h4 id='{escape(name)}'>Body: {escape(name)}</h4>{_fields(schemas[name])}"
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        if "properties" in content["schema"]:
            yield f"<h4>Body: {escape(kind)}</h4>{_fields(content['schema'])}"


def _reply(operation: Json) -> Iterator[str]:
    responses = operation["responses"]
    for content in responses["200"].get("content", {}).values():
        if fields := content["schema"].get("properties"):
            yield f"<details><summary>Fields of the reply</summary>{field_table(fields, (), 'Field')}</details>"
    rows = (f"<tr><td>{status}<td>{escape(response['description'])}" for status, response in responses.items())
    yield f"<details><summary>Statuses</summary><table>{''.join(rows)}</table></details>"


def _object(name: str, schema: Json) -> Iterator[str]:
    yield f"<h3 id='{escape(name)}'>{escape(name)}</h3>"
    if "description" in schema:
        yield f"<p>{escape(schema['description'])}</p>"
    yield _fields(schema)


def _fields(schema: Json) -> str:
    return field_table(schema.get("properties", {}), schema.get("required", ()), "Field")
