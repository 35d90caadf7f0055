"""Find references that lead back to themselves, so that a schema says nothing about any value."""

import contextlib
from collections.abc import Iterator

from server.strict_json import JsonValue
from server.structured_output.json_pointer import at_pointer
from server.structured_output.schema_places import join, subschemas


def endless_reference(schema: JsonValue) -> str | None:
    """Return the path of the first `$ref` that leads back to itself by `$ref` and `allOf` alone; None without one."""
    done: set[int] = set()
    for path, value in subschemas(schema):
        if isinstance(value, dict) and "$ref" in value and _is_endless(value, schema, done):
            return join(path, "$ref")
    return None


def _is_endless(start: JsonValue, root: JsonValue, done: set[int]) -> bool:
    """Return whether schemas of the same value, from `start` on, form a loop. `done`: schemas that lead to none."""
    ways = [(id(start), _applied(start, root))]
    on_way = {id(start)}
    while ways:
        place, others = ways[-1]
        other = next((other for other in others if id(other) not in done), None)
        if other is None:
            ways.pop()
            on_way.discard(place)
            done.add(place)
        elif id(other) in on_way:
            return True
        else:
            on_way.add(id(other))
            ways.append((id(other), _applied(other, root)))
    return False


def _applied(schema: JsonValue, root: JsonValue) -> Iterator[JsonValue]:
    """Yield the objects that apply to the same value as the schema."""
    if not isinstance(schema, dict):
        return
    if isinstance(reference := schema.get("$ref"), str):
        with contextlib.suppress(LookupError):
            yield at_pointer(root, reference)
    if isinstance(members := schema.get("allOf"), list):
        yield from members
