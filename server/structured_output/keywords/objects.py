"""Rewrite the keywords of objects that llguidance lacks."""

from collections.abc import Iterator
from itertools import combinations

from server.strict_json import JsonValue
from server.structured_output.keywords.document import (
    ANNOTATIONS,
    MAX_ALTERNATIVES,
    Document,
    JsonObject,
    NotExpressible,
    any_of,
    as_count,
    as_object,
    num_choices,
    texts,
)

_CONDITIONAL = frozenset(
    {"anyOf", "oneOf", "if", "then", "else", "dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef"}
)


def dependencies(value: JsonValue) -> list[JsonValue]:
    """Rewrite `dependentRequired`, `dependentSchemas`, `dependencies`: a member is absent, or what it needs holds."""
    return [_dependency(name, needed) for name, needed in as_object(value).items()]


def _dependency(name: str, needed: JsonValue) -> JsonValue:
    absent: JsonObject = {"properties": {name: False}}
    if isinstance(needed, list):
        return any_of([absent, {"required": [name, *texts(needed)]}])
    return any_of([absent, {"required": [name], "allOf": [needed]}])


def property_names(
    value: JsonValue, siblings: JsonObject, document: Document, *, with_patterns: bool
) -> list[JsonValue]:
    """Rewrite `propertyNames` with names of a list and, `with_patterns`, names that match an expression, and names of
    some length."""
    names = document.resolve(value)
    if isinstance(names, bool):
        return [] if names else [{"additionalProperties": False}]
    names = {keyword: part for keyword, part in as_object(names).items() if keyword not in ANNOTATIONS}
    if names.pop("type", "string") != "string":
        raise NotExpressible
    if not names:
        return []
    if names.keys() in ({"enum"}, {"const"}):
        listed = names["enum"] if "enum" in names else [names["const"]]
        allowed: JsonObject = dict.fromkeys(texts(listed), True)
        document.spend(len(allowed))
        return [{"properties": allowed, "additionalProperties": False}]
    is_pattern = names.keys() <= {"pattern", "minLength", "maxLength"}
    if not with_patterns or not is_pattern or "patternProperties" in siblings:
        raise NotExpressible
    return [{"patternProperties": {_name_pattern(names): True}, "additionalProperties": False}]


def _name_pattern(names: JsonObject) -> str:
    if "pattern" in names:
        if len(names) > 1 or not isinstance(names["pattern"], str):
            raise NotExpressible
        return names["pattern"]
    least = as_count(names.get("minLength", 0))
    most = as_count(names["maxLength"]) if "maxLength" in names else ""
    return f"^(?s:.{{{least},{most}}})$"


def unevaluated_properties(value: JsonValue, siblings: JsonObject, document: Document) -> list[JsonValue]:
    """Rewrite `unevaluatedProperties`: the schema of members that no other keyword has evaluated.

    Which ones these are must not depend on the value: only `allOf` and `$ref` may bring further keywords.
    """
    names: JsonObject = {}
    patterns: JsonObject = {}
    for schema in _applied(siblings, document):
        if not _CONDITIONAL.isdisjoint(schema):
            raise NotExpressible
        if "additionalProperties" in schema or (schema is not siblings and "unevaluatedProperties" in schema):
            return []  # all members are evaluated
        names |= dict.fromkeys(as_object(schema.get("properties", {})), True)
        patterns |= dict.fromkeys(as_object(schema.get("patternProperties", {})), True)
    document.spend(len(names) + len(patterns))
    rest: JsonObject = {"properties": names, "additionalProperties": value}
    return [{**rest, "patternProperties": patterns} if patterns else rest]


def _applied(schema: JsonValue, document: Document, depth: int = 0) -> Iterator[JsonObject]:
    """Yield the schema and those that always apply to the same value. Raises NotExpressible for recursive ones."""
    document.spend()
    if depth > 32:
        raise NotExpressible
    if not isinstance(schema, dict):
        return
    yield schema
    parts = schema.get("allOf", [])
    for part in parts if isinstance(parts, list) else []:
        yield from _applied(part, document, depth + 1)
    if "$ref" in schema:
        yield from _applied(document.target(schema["$ref"]), document, depth + 1)


def member_counts(siblings: JsonObject, document: Document) -> list[JsonValue]:
    """Rewrite `minProperties` and `maxProperties` of an object whose members are all known: which of them are there."""
    known = as_object(siblings.get("properties", {}))
    required = set(texts(siblings.get("required", [])))
    optional = [name for name in known if name not in required]
    if siblings.get("additionalProperties") is not False or "patternProperties" in siblings or not optional:
        raise NotExpressible
    extras: list[JsonValue] = []
    if "minProperties" in siblings:
        num_present = as_count(siblings["minProperties"]) - len(required)
        extras.append(any_of([{"required": [*names]} for names in _choices(optional, num_present, document)]))
    if "maxProperties" in siblings:
        num_absent = len(required) + len(optional) - as_count(siblings["maxProperties"])
        absent: list[JsonObject] = [dict.fromkeys(names, False) for names in _choices(optional, num_absent, document)]
        extras.append(any_of([{"properties": names} for names in absent]))
    return extras


def _choices(names: list[str], num_chosen: int, document: Document) -> Iterator[tuple[str, ...]]:
    """Yield each choice of so many names, of none if the number is negative."""
    if num_chosen > len(names):
        return iter(())
    num_chosen = max(0, num_chosen)
    num_ways = num_choices(len(names), num_chosen)
    if num_ways > MAX_ALTERNATIVES:
        raise NotExpressible
    document.spend(num_ways * num_chosen)
    return combinations(names, num_chosen)
