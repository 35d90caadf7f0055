"""Fields of an object as an HTML table: name, type with range and default, and what the field does."""

import json
from collections.abc import Collection, Iterator, Mapping
from html import escape
from typing import Any

from server.api.openapi.descriptions import NOT_SUPPORTED

Json = Mapping[str, Any]

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
_EVERY_INTEGER = (-(2**63), 2**63 - 1)  # limits that are not worth a word
_NULL: Json = {"type": "null"}


def field_table(fields: Mapping[str, Json], required: Collection[str], title: str) -> str:
    """Return the table and, below it, the names of fields that are not supported.

    Fields that are `required` have a star and come first, other servers' names come last. Members of objects without a
    name have rows: choices[].index.
    """
    unsupported = [name for name, schema in fields.items() if schema.get("description") == NOT_SUPPORTED]
    shown = {name: schema for name, schema in fields.items() if name not in unsupported}
    ordered = sorted(shown.items(), key=lambda field: (field[0] not in required, _is_other_name(field[1])))
    rows = "".join(_rows(dict(ordered), required, ""))
    table = f"<table><thead><tr><th>{escape(title)}<th>Type<th>What it does</thead>{rows}</table>"
    names = ", ".join(f"<code>{escape(name)}</code>" for name in unsupported)
    return table + (f"<p>{NOT_SUPPORTED.replace(':', f' ({names}):')}</p>" if unsupported else "")


def _is_other_name(schema: Json) -> bool:
    return str(schema.get("description", "")).startswith("The name for")


def _rows(fields: Mapping[str, Json], required: Collection[str], prefix: str) -> Iterator[str]:
    for name, schema in fields.items():
        shown = f"<code>{escape(prefix + name)}</code>{' *' if name in required else ''}"
        kind = type_in_words(schema) + _default(schema)
        yield f"<tr><td>{shown}<td>{kind}<td>{in_code(schema.get('description', ''))}"
        items = schema.get("items")
        if "properties" in schema:
            yield from _rows(schema["properties"], (), f"{prefix}{name}.")
        elif isinstance(items, Mapping) and "properties" in items:
            yield from _rows(items["properties"], (), f"{prefix}{name}[].")


def type_in_words(schema: Json) -> str:
    """Return a type in words, as HTML; objects with a name are links. That null is absence is not said each time."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(type_in_words(part) for part in schema[key] if part != _NULL)
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return "one of " + ", ".join(map(_value, values)) if len(values) > 1 else _value(values[0])
    kinds = schema.get("type", "any value")
    words = kinds if isinstance(kinds, str) else " or ".join(kinds)
    if isinstance(schema.get("items"), Mapping):
        words += f" of {type_in_words(schema['items'])}"
    limits = [
        text.format(f"<code>{escape(str(schema[key]))}</code>")
        for key, text in _LIMITS.items()
        if key in schema and schema[key] not in _EVERY_INTEGER
    ]
    return ", ".join([words, *limits])


def _default(schema: Json) -> str:
    """Return the default, unless it is absence or an empty value."""
    value = schema.get("default")
    return "" if value in (None, "", [], {}) else f"; default {_value(value)}"


def _value(value: object) -> str:
    return f"<code>{escape(json.dumps(value))}</code>"


def in_code(text: str) -> str:
    """Return a sentence as HTML, with the words between backticks in <code>."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
