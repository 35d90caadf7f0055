"""Close the objects of a tool's schema: an object with `properties` has no others unless the schema says so.

By JSON Schema's rules an object without `additionalProperties` may have any other members. Small models then write
members for ever. So arguments of tools follow the rule that tools are usually written for; llama.cpp has the same rule.
"""

from collections.abc import Mapping

from server.strict_json import JsonValue

# With one of these beside `properties`, other members may be meant, or are described elsewhere.
_OPEN = frozenset(
    {"$dynamicRef", "$ref", "additionalProperties", "allOf", "anyOf", "dependencies", "dependentRequired", "else"}
    | {
        "dependentSchemas",
        "if",
        "minProperties",
        "oneOf",
        "patternProperties",
        "propertyNames",
        "then",
        "unevaluatedProperties",
    }
)
_NAMED = ("$defs", "definitions", "properties")  # objects of schemas
_LISTED = ("anyOf", "oneOf", "prefixItems")  # lists of schemas
_SINGLE = ("additionalProperties", "items")


def closed(schema: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the schema with `"additionalProperties": false` in each object that describes its members alone.

    {"properties": {"a": {}}} is closed; {"type": "object"} is any object. Parts of `allOf` stay open, since each of
    them would forbid the others' members; so do definitions, if `allOf` may refer to them.
    """
    return _closed(dict(schema), skipped={"$defs", "definitions"} if "'allOf'" in str(schema) else set())


def _closed(schema: dict[str, JsonValue], skipped: set[str]) -> dict[str, JsonValue]:
    result = dict(schema)
    for key in {*_NAMED} - skipped:
        members = schema.get(key)
        if isinstance(members, dict):
            result[key] = {name: _inner(member, skipped) for name, member in members.items()}
    for key in () if "properties" in schema else _LISTED:
        parts = schema.get(key)
        if isinstance(parts, list):
            result[key] = [_inner(part, skipped) for part in parts]
    for key in _SINGLE:
        if key in schema:
            result[key] = _inner(schema[key], skipped)
    if _describes_all_members(schema):
        result["additionalProperties"] = False
    return result


def _inner(value: JsonValue, skipped: set[str]) -> JsonValue:
    return _closed(value, skipped) if isinstance(value, dict) else value


def _describes_all_members(schema: dict[str, JsonValue]) -> bool:
    members, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(members, dict) or not isinstance(required, list) or not _OPEN.isdisjoint(schema):
        return False
    return all(name in members for name in required if isinstance(name, str))
