"""Rewrite the keywords of arrays that llguidance lacks, where an array's length or its items are bounded."""

from collections.abc import Callable, Sequence
from itertools import combinations, permutations

from server.strict_json import JsonValue
from server.structured_output.keywords.document import (
    ANNOTATIONS,
    MAX_ALTERNATIVES,
    Document,
    JsonObject,
    NotExpressible,
    any_of,
    as_count,
    as_list,
    as_object,
    is_equal,
    num_choices,
    other_types,
)

NO_ARRAY = other_types(["array"])


def unique_items(siblings: JsonObject, document: Document) -> list[JsonValue]:
    """Rewrite `uniqueItems`: every arrangement of the values that an item may have, if they are few."""
    if siblings["uniqueItems"] is False:
        return []
    most = _longest(siblings)
    if siblings["uniqueItems"] is not True:
        raise NotExpressible
    if most is not None and most <= 1:
        return []
    if "prefixItems" in siblings:
        raise NotExpressible
    values = _values(document.resolve(siblings.get("items", True)))
    lengths = range(as_count(siblings.get("minItems", 0)), min(len(values), len(values) if most is None else most) + 1)
    num_arrays = _num_arrangements(len(values), lengths)
    document.spend(num_arrays * len(values))
    arrays: list[JsonValue] = [[*items] for length in lengths for items in permutations(values, length)]
    return [_of_arrays(siblings, {"enum": arrays} if arrays else False)]


def _num_arrangements(num_values: int, lengths: range) -> int:
    """Return how many arrays of these lengths have only different values. Raises NotExpressible for too many."""
    total = 0
    for length in lengths:
        arrangements = 1
        for i in range(length):
            arrangements *= num_values - i
            if arrangements > MAX_ALTERNATIVES:
                raise NotExpressible
        total += arrangements
        if total > MAX_ALTERNATIVES:
            raise NotExpressible
    return total


def contains(siblings: JsonObject, document: Document, negated: Callable[[JsonValue], JsonValue]) -> list[JsonValue]:
    """Rewrite `contains`: which items of a short array follow its schema. `negated`: of the schema."""
    if "contains" not in siblings:
        return []
    schema = siblings["contains"]
    least = as_count(siblings.get("minContains", 1))
    most = as_count(siblings["maxContains"]) if "maxContains" in siblings else None
    if schema is True or schema == {}:
        return [{"minItems": least} if most is None else {"minItems": least, "maxItems": most}]
    if most == 0:
        return [{"items": negated(schema)}] if least == 0 else [NO_ARRAY]
    if least == 0 and most is None:
        return []
    length = _longest(siblings)
    if length is None:
        raise NotExpressible
    counts = range(least, min(least if most is None else most, length) + 1)
    num_places = _num_places(length, counts)
    other = True if most is None else negated(schema)
    document.spend(length * num_places)
    arrays = [
        _with_items(chosen, schema, other, length) for count in counts for chosen in combinations(range(length), count)
    ]
    return [_of_arrays(siblings, any_of(arrays))]


def _num_places(length: int, counts: range) -> int:
    """Return in how many ways so many items of an array can be chosen. Raises NotExpressible for too many."""
    if counts.stop - counts.start > MAX_ALTERNATIVES:
        raise NotExpressible
    total = sum(num_choices(length, count) for count in counts)
    if total > MAX_ALTERNATIVES:
        raise NotExpressible
    return total


def _with_items(chosen: Sequence[int], schema: JsonValue, other: JsonValue, length: int) -> JsonValue:
    """Return the schema of arrays whose chosen items follow one schema, and the rest another."""
    prefix = [schema if i in chosen else other for i in range(length)]
    return {"type": "array", "minItems": max(chosen, default=-1) + 1, "prefixItems": prefix}


def unevaluated_items(value: JsonValue, siblings: JsonObject) -> list[JsonValue]:
    """Rewrite `unevaluatedItems` beside `items` and `prefixItems`; other keywords may evaluate some items only."""
    allowed = {"items", "prefixItems", "minItems", "maxItems", "uniqueItems", "type", "unevaluatedItems"} | ANNOTATIONS
    if not siblings.keys() <= allowed or isinstance(siblings.get("items"), list):
        raise NotExpressible
    if "items" in siblings:
        return []
    num_evaluated = len(as_list(siblings.get("prefixItems", [])))
    return [{"prefixItems": [True] * num_evaluated, "items": value}]


def _longest(schema: JsonObject) -> int | None:
    """Return how many items an array may have; None if that is not bounded."""
    lengths = [as_count(schema["maxItems"])] if "maxItems" in schema else []
    if schema.get("items") is False:
        lengths.append(len(as_list(schema.get("prefixItems", []))))
    return min(lengths, default=None)


def _values(schema: JsonValue) -> list[JsonValue]:
    """Return the values that may follow a schema, each once. Raises NotExpressible if they are not listed."""
    keywords = {keyword: value for keyword, value in as_object(schema).items() if keyword not in ANNOTATIONS}
    if keywords.keys() == {"type"} and keywords["type"] in ("boolean", "null"):
        return [False, True] if keywords["type"] == "boolean" else [None]
    if "const" in keywords:
        return [keywords["const"]]
    listed = as_list(keywords.get("enum"))
    if len(listed) > MAX_ALTERNATIVES:
        raise NotExpressible
    values: list[JsonValue] = []
    for value in listed:
        if not any(is_equal(value, other) for other in values):
            values.append(value)
    return values


def _of_arrays(siblings: JsonObject, schema: JsonValue) -> JsonValue:
    """Return a schema that only arrays have to follow."""
    return schema if siblings.get("type") == "array" else any_of([NO_ARRAY, schema])
