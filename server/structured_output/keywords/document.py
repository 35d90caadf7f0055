"""A schema whose parts are rewritten: what references lead to, and how much work it may still cause."""

from collections.abc import Collection

from server.strict_json import JsonValue
from server.structured_output.json_pointer import at_pointer

JsonObject = dict[str, JsonValue]

MAX_WORK = 5_000  # subschemas that rewriting visits or makes beyond those of the client
MAX_ALTERNATIVES = 500  # that stand for one keyword
MAX_REFERENCES = 32  # that lead to one another
ALL_TYPES = ("null", "boolean", "number", "string", "array", "object")
# Keywords without a say about which values are valid.
ANNOTATIONS = frozenset(
    {"$anchor", "$comment", "$defs", "$dynamicAnchor", "$id", "$schema", "$vocabulary", "contentEncoding", "title"}
    | {"contentMediaType", "contentSchema", "default", "definitions", "deprecated", "description", "examples", "id"}
    | {"readOnly", "writeOnly"}
)


class NotExpressible(Exception):
    """The keyword cannot be written in llguidance's keywords, or not in few of them."""


class TooMuchWork(Exception):
    """Rewriting the schema would take more than MAX_WORK."""


class Document:
    """The whole schema, for `$ref`, and the work that its rewriting may still cause."""

    def __init__(self, root: JsonObject, num_subschemas: int) -> None:
        self._root = root
        self._remaining = num_subschemas + MAX_WORK

    def spend(self, amount: int = 1) -> None:
        """Count the work. Raises TooMuchWork beyond MAX_WORK."""
        self._remaining -= amount
        if self._remaining < 0:
            raise TooMuchWork

    def resolve(self, schema: JsonValue) -> JsonValue:
        """Follow a schema that is a reference and nothing else. Raises NotExpressible if it leads nowhere, or far."""
        for _ in range(MAX_REFERENCES):
            if not isinstance(schema, dict) or "$ref" not in schema or schema.keys() - ANNOTATIONS - {"$ref"}:
                return schema
            self.spend()
            schema = self.target(schema["$ref"])
        raise NotExpressible

    def target(self, reference: JsonValue) -> JsonValue:
        """Follow a JSON pointer inside the schema. Raises NotExpressible for anything else."""
        if not isinstance(reference, str):
            raise NotExpressible
        try:
            return at_pointer(self._root, reference)
        except LookupError:
            raise NotExpressible from None


def num_choices(length: int, count: int) -> int:
    """Return the number of ways to choose so many of `length`, or a number beyond MAX_ALTERNATIVES if it is larger: the
    exact one can have millions of digits."""
    if not 0 <= count <= length:
        return 0
    ways = 1
    for i in range(min(count, length - count)):
        ways = ways * (length - i) // (i + 1)
        if ways > MAX_ALTERNATIVES:
            break
    return ways


def other_types(types: Collection[str]) -> JsonValue:
    """Return the schema of all values that have none of these types."""
    left: list[JsonValue] = [one for one in ALL_TYPES if one not in types]
    return {"type": left} if left else False


def any_of(schemas: Collection[JsonValue]) -> JsonValue:
    """Return the schema of values that follow one of the schemas at least."""
    return _joined("anyOf", [schema for schema in schemas if schema is not False], neutral=False, absorbing=True)


def all_of(schemas: Collection[JsonValue]) -> JsonValue:
    """Return the schema of values that follow all of the schemas."""
    return _joined("allOf", [schema for schema in schemas if schema is not True], neutral=True, absorbing=False)


def _joined(keyword: str, schemas: list[JsonValue], *, neutral: bool, absorbing: bool) -> JsonValue:
    if any(schema is absorbing for schema in schemas):
        return absorbing
    if len(schemas) <= 1:
        return schemas[0] if schemas else neutral
    return {keyword: schemas}


def is_equal(one: JsonValue, other: JsonValue) -> bool:
    """Return whether JSON's values are equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    return one == other


def as_list(value: JsonValue) -> list[JsonValue]:
    """Return the list. Raises NotExpressible for another value."""
    if not isinstance(value, list):
        raise NotExpressible
    return value


def as_object(value: JsonValue) -> JsonObject:
    """Return the object. Raises NotExpressible for another value."""
    if not isinstance(value, dict):
        raise NotExpressible
    return value


def as_number(value: JsonValue) -> int | float:
    """Return the number. Raises NotExpressible for another value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotExpressible
    return value


def as_count(value: JsonValue) -> int:
    """Return the integer, which is not negative. Raises NotExpressible for another value."""
    number = as_number(value)
    if number < 0 or number != int(number):
        raise NotExpressible
    return int(number)


def texts(value: JsonValue) -> list[str]:
    """Return the list of strings, each of them once. Raises NotExpressible for another value."""
    found = as_list(value)
    if not all(isinstance(one, str) for one in found):
        raise NotExpressible
    return list(dict.fromkeys(map(str, found)))
