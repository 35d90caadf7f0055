"""Group the subschemas of an object's properties and an array's items that can apply to the same value."""

from collections.abc import Iterator, Sequence

from server.strict_json import JsonValue

JsonObject = dict[str, JsonValue]

_OTHER_PROPERTIES = ("additionalProperties", "unevaluatedProperties")
_OTHER_ITEMS = ("items", "additionalItems", "unevaluatedItems", "contains")


def property_groups(members: Sequence[JsonObject]) -> Iterator[list[JsonValue]]:
    """Yield, for each property and then for those without a name, the subschemas that may apply to it."""
    unnamed: list[JsonValue] = []
    of_name: dict[str, list[JsonValue]] = {}
    for member in members:
        for name, schema in _object_of(member, "properties").items():
            of_name.setdefault(name, []).append(schema)
        unnamed += _object_of(member, "patternProperties").values()
        unnamed += [member[keyword] for keyword in _OTHER_PROPERTIES if isinstance(member.get(keyword), dict)]
    for schemas in of_name.values():
        yield [*schemas, *unnamed]
    yield unnamed


def item_groups(members: Sequence[JsonObject]) -> Iterator[list[JsonValue]]:
    """Yield, for each position with a subschema of its own and then for the others, those that may apply to it."""
    prefixes = [value for member in members for value in _prefixes(member)]
    others: list[JsonValue] = [
        value for member in members for keyword in _OTHER_ITEMS if isinstance(value := member.get(keyword), dict)
    ]
    for i in range(max(map(len, prefixes), default=0)):
        yield [*(prefix[i] for prefix in prefixes if i < len(prefix)), *others]
    yield others


def _prefixes(member: JsonObject) -> Iterator[list[JsonValue]]:
    for keyword in ("prefixItems", "items"):
        value = member.get(keyword)
        if isinstance(value, list):
            yield value


def _object_of(member: JsonObject, keyword: str) -> JsonObject:
    value = member.get(keyword)
    return value if isinstance(value, dict) else {}
