"""The description as one HTML page without scripts, which loads nothing from other servers."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = (
    ":root{color-scheme:light dark;background:Canvas;color:CanvasText}"  # the page, not only the body's box
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "h2{margin-top:3rem;font:600 1.1rem ui-monospace,monospace}table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0;border-bottom:1px solid #8884}"
    "code{font-size:.9em;overflow-wrap:anywhere}"
)
_LIMITS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "greater than {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} entries",
    "maxItems": "at most {} entries",
    "maxProperties": "at most {} members",
    "pattern": "matches {}",
}


def page(document: Mapping[str, Any]) -> str:
    """Render an OpenAPI document."""
    info, schemas = document["info"], document["components"]["schemas"]
    operations = [
        part
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        for part in _operation(method, path, operation, schemas)
    ]
    nested = [part for name in sorted(schemas) for part in _model(name, schemas[name])]
    return "\n".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
            f"<title>{escape(info['title'])} API</title><style>{STYLE}</style>",
            f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>",
            "<p>For programs: <a href=openapi.json>openapi.json</a></p>",
            *operations,
            "<h1>Objects</h1>",
            *nested,
        ]
    )


def _operation(method: str, path: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2 id='{escape(operation['operationId'])}'>{method.upper()} {escape(path)}</h2>"
    yield f"<p>{escape(operation['summary'])}</p>"
    for content in operation.get("requestBody", {}).get("content", {}).values():
        yield f"<p>Body: {_type(content['schema'])}</p>"
    rows = (
        f"<tr><td>{status}<td>{escape(response['description'])}" for status, response in operation["responses"].items()
    )
    yield f"<details><summary>Statuses</summary><table>{''.join(rows)}</table></details>"


def _model(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2 id='{escape(name)}'>{escape(name)}</h2>"
    if "description" in schema:
        yield f"<p>{escape(schema['description'])}</p>"
    required = schema.get("required", [])
    rows = (
        f"<tr><td><code>{escape(field)}</code>{' *' if field in required else ''}<td>{_type(of)}"
        for field, of in schema.get("properties", {}).items()
    )
    yield f"<table>{''.join(rows)}</table>"


def _type(schema: Mapping[str, Any]) -> str:
    """Describe a type in words; other objects are links."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type(part) for part in schema[key])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return "one of " + ", ".join(f"<code>{escape(repr(value))}</code>" for value in values)
    words = str(schema.get("type", "any value"))
    if isinstance(schema.get("items"), Mapping):
        words += f" of {_type(schema['items'])}"
    limits = [text.format(f"<code>{escape(str(schema[key]))}</code>") for key, text in _LIMITS.items() if key in schema]
    return ", ".join([words, *limits])
