"""Rewrite the keywords of arrays that llguidance lacks, where an array's length or its items are bounded."""

from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from math import comb, perm

from server.strict_json import JsonValue
from server.structured_output.keywords.document import (
    ANNOTATIONS,
    MAX_ALTERNATIVES,
    Document,
    JsonObject,
    NotHeld,
    any_of,
    as_count,
    as_list,
    as_object,
    is_equal,
    other_types,
)

NO_ARRAY = other_types(["array"])


def unique_items(siblings: JsonObject, document: Document) -> list[JsonValue]:
    """Rewrite `uniqueItems`: every arrangement of the values that an item may have, if they are few."""
    if siblings["uniqueItems"] is False:
        return []
    most = _longest(siblings)
    if siblings["uniqueItems"] is not True:
        raise NotHeld
    if most is not None and most <= 1:
        return []
    if "prefixItems" in siblings:
        raise NotHeld
    values = _values(document.resolve(siblings.get("items", True)))
    lengths = range(as_count(siblings.get("minItems", 0)), min(len(values), len(values) if most is None else most) + 1)
    num_arrays = sum(perm(len(values), length) for length in lengths)
    if num_arrays > MAX_ALTERNATIVES:
        raise NotHeld
    document.spend(num_arrays * len(values))
    arrays: list[JsonValue] = [[*items] for length in lengths for items in permutations(values, length)]
    return [_of_arrays(siblings, {"enum": arrays} if arrays else False)]


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
        raise NotHeld
    counts = [least] if most is None else range(least, min(most, length) + 1)
    if sum(comb(length, count) for count in counts) > MAX_ALTERNATIVES:
        raise NotHeld
    other = True if most is None else negated(schema)
    document.spend(length * sum(comb(length, count) for count in counts))
    arrays = [
        _with_items(chosen, schema, other, length) for count in counts for chosen in combinations(range(length), count)
    ]
    return [_of_arrays(siblings, any_of(arrays))]


def _with_items(chosen: Sequence[int], schema: JsonValue, other: JsonValue, length: int) -> JsonValue:
    """Return the schema of arrays whose chosen items follow one schema, and the rest another."""
    prefix = [schema if i in chosen else other for i in range(length)]
    return {"type": "array", "minItems": max(chosen, default=-1) + 1, "prefixItems": prefix}


def unevaluated_items(value: JsonValue, siblings: JsonObject) -> list[JsonValue]:
    """Rewrite `unevaluatedItems` beside `items` and `prefixItems`; other keywords may evaluate some items only."""
    allowed = {"items", "prefixItems", "minItems", "maxItems", "uniqueItems", "type", "unevaluatedItems"} | ANNOTATIONS
    if not siblings.keys() <= allowed or isinstance(siblings.get("items"), list):
        raise NotHeld
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
    """Return the values that may follow a schema, each once. Raises NotHeld if they are not listed."""
    keywords = {keyword: value for keyword, value in as_object(schema).items() if keyword not in ANNOTATIONS}
    if keywords.keys() == {"type"} and keywords["type"] in ("boolean", "null"):
        return [False, True] if keywords["type"] == "boolean" else [None]
    if "const" in keywords:
        return [keywords["const"]]
    values: list[JsonValue] = []
    for value in as_list(keywords.get("enum")):
        if not any(is_equal(value, other) for other in values):
            values.append(value)
    return values


def _of_arrays(siblings: JsonObject, schema: JsonValue) -> JsonValue:
    """Return a schema that only arrays have to follow."""
    return schema if siblings.get("type") == "array" else any_of([NO_ARRAY, schema])
