"""Count the optional properties that may come next in one object: llguidance follows each of them at once."""

from collections.abc import Collection, Iterator

from server.strict_json import JsonValue
from server.structured_output.json_pointer import at_pointer

JsonObject = dict[str, JsonValue]

MAX_VISITS = 100_000  # of subschemas: 30 ms
_SAME_VALUE = ("allOf", "anyOf", "oneOf")


class TooManyAlternatives(Exception):
    """The subschemas apply to the same values in too many ways to count."""


def most_optional(root: JsonObject, objects: Collection[JsonObject], limit: int) -> int:
    """Return the most optional properties of one of the objects, with those of its alternatives; or, if no more than
    `limit`, those of all together.

    `objects`: the parts of the schema `root`. Raises TooManyAlternatives.
    """
    own = {id(schema): num for schema in objects if (num := _num_optional(schema))}
    if sum(own.values()) <= limit:
        return sum(own.values())
    visits = iter(range(MAX_VISITS))
    return max(
        sum(own.get(id(schema), 0) for schema in _applied(root, part, visits))
        for part in objects
        if id(part) in own or not part.keys().isdisjoint(_SAME_VALUE)
    )


def _num_optional(schema: JsonObject) -> int:
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict):
        return 0
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    return len(properties.keys() - set(names))


def _applied(root: JsonObject, schema: JsonObject, visits: Iterator[int]) -> Iterator[JsonObject]:
    """Yield the schema and those that may apply to the same value, each once. Raises TooManyAlternatives."""
    seen: set[int] = set()
    stack: list[JsonValue] = [schema]
    while stack:
        if next(visits, None) is None:
            raise TooManyAlternatives
        part = stack.pop()
        if not isinstance(part, dict) or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        for keyword in _SAME_VALUE:
            others = part.get(keyword)
            stack += others if isinstance(others, list) else []
        stack += _referred(root, part)


def _referred(root: JsonObject, schema: JsonObject) -> list[JsonValue]:
    """Return what `$ref` leads to. llguidance refuses references that lead nowhere."""
    reference = schema.get("$ref")
    try:
        return [at_pointer(root, reference)] if isinstance(reference, str) else []
    except LookupError:
        return []
