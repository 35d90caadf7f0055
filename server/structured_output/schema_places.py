"""Find places in a JSON schema: paths of keywords, with positions in place of the client's names.

`properties[1].items.type` is the type of the items of the second property. A path repeats nothing of the client's.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any

from server.strict_json import JsonValue

TYPES = frozenset({"null", "boolean", "object", "array", "number", "string", "integer"})
SCHEMA_KEYWORDS = frozenset(
    {"items", "additionalItems", "unevaluatedItems", "contains", "additionalProperties", "unevaluatedProperties"}
    | {"propertyNames", "not", "if", "then", "else"}
)
LIST_KEYWORDS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
OBJECT_KEYWORDS = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
)


def subschemas(schema: JsonValue, path: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Yield the schema and those inside it, in their order, each with its path."""
    yield path, schema
    for keyword, value in schema.items() if isinstance(schema, dict) else ():
        place = join(path, keyword)
        if keyword in OBJECT_KEYWORDS and isinstance(value, dict):
            members = list(value.values())
        elif keyword in LIST_KEYWORDS and isinstance(value, list):
            members = value
        else:
            if keyword in SCHEMA_KEYWORDS:
                yield from subschemas(value, place)
            continue
        for position, member in enumerate(members):
            if keyword == "dependencies" and isinstance(member, list):
                continue  # names of members
            yield from subschemas(member, f"{place}[{position}]")


def misshapen(schema: JsonValue) -> str | None:
    """Return the first keyword whose value is of the wrong kind, as "properties[1].type is not a type of JSON"."""
    for path, value in subschemas(schema):
        if not isinstance(value, dict | bool):
            return f"{path} must be an object or a boolean"
        for keyword in value if isinstance(value, dict) else ():
            is_right, words = _SHAPES.get(keyword, _ANY)
            if isinstance(value, dict) and not is_right(value[keyword]):
                return f"{join(path, keyword)} {words}"
    return None


def place_of(
    schema: JsonValue, keywords: Collection[str], is_meant: Callable[[JsonValue], bool] = lambda value: True
) -> str | None:
    """Return the path of the first of these keywords whose value is meant."""
    for path, inside in subschemas(schema):
        for keyword in inside if isinstance(inside, dict) else ():
            if keyword in keywords and isinstance(inside, dict) and is_meant(inside[keyword]):
                return join(path, keyword)
    return None


def patterns(schema: JsonValue) -> Iterator[tuple[str, str]]:
    """Yield each regular expression with its path."""
    for path, value in subschemas(schema):
        if not isinstance(value, dict):
            continue
        if isinstance(pattern := value.get("pattern"), str):
            yield join(path, "pattern"), pattern
        named = value.get("patternProperties")
        for position, name in enumerate(named if isinstance(named, dict) else ()):
            yield f"{join(path, 'patternProperties')}[{position}]", name


def join(path: str, keyword: str) -> str:
    """Return the path of a keyword of the subschema at a path."""
    return f"{path}.{keyword}" if path else keyword


def _is_type(value: Any) -> bool:
    return value in TYPES if isinstance(value, str) else _is_list(value) and all(_is_type(one) for one in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and float(value).is_integer()


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return _is_list(value) and all(map(_is_text, value))


def _are_lists_of_texts(value: Any) -> bool:
    return _is_object(value) and all(map(_are_texts, value.values()))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


Shape = tuple[Callable[[Any], bool], str]
_ANY: Shape = (lambda value: True, "")
_SHAPES: dict[str, Shape] = {
    "type": (_is_type, "is not a type of JSON, nor a list of such types"),
    "required": (_are_texts, "must be an array of strings"),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems", "enum"), (_is_list, "must be an array")),
    "uniqueItems": (_is_flag, "must be a boolean"),
    "dependentRequired": (_are_lists_of_texts, "must be an object of arrays of strings"),
    **dict.fromkeys(
        ("properties", "patternProperties", "$defs", "dependentSchemas", "dependencies"),
        (_is_object, "must be an object"),
    ),
    **dict.fromkeys(("pattern", "format", "$ref"), (_is_text, "must be a string")),
    **dict.fromkeys(
        (
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "minProperties",
            "maxProperties",
            "minContains",
            "maxContains",
        ),
        (_is_count, "must be an integer that is not negative"),
    ),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), (_is_number, "must be a number")),
}
