"""Rewrite `oneOf`: each alternative without the values of the others."""

from collections.abc import Callable
from itertools import combinations

from server.strict_json import JsonValue
from server.structured_output.keywords.document import (
    ALL_TYPES,
    Document,
    JsonObject,
    NotExpressible,
    all_of,
    any_of,
    as_list,
    as_object,
    is_equal,
    texts,
)

MAX_COMPARISONS = 2_000  # of subschemas; llguidance compares larger ones itself, though not as closely
MAX_LISTED = 64  # values of a schema that are compared one by one
VALUES_PER_WORK = 32  # values, names or pairs of values that take as much time as one schema
MAX_DEPTH = 4  # of members whose schemas are compared


def exactly_one(value: JsonValue, document: Document, negated: Callable[[JsonValue], JsonValue]) -> JsonValue:
    """Return the schema of values that follow exactly one of the schemas. Raises NotExpressible."""
    schemas = as_list(value)
    if _have_tags(schemas, document):
        return any_of(schemas)
    comparison = _Comparison(document)
    others: list[list[JsonValue]] = [[] for _ in schemas]
    for i, j in combinations(range(len(schemas)), 2):
        if not comparison.are_disjoint(schemas[i], schemas[j]):
            others[i].append(negated(schemas[j]))
            others[j].append(negated(schemas[i]))
    return any_of([all_of([schema, *excluded]) for schema, excluded in zip(schemas, others, strict=True)])


def _have_tags(schemas: list[JsonValue], document: Document) -> bool:
    """Return whether all schemas are of objects that require the same member, with other listed values in each: a tag,
    which tells many schemas apart without comparing each with each."""
    resolved = [document.resolve(schema) for schema in schemas]
    objects = [schema for schema in resolved if isinstance(schema, dict) and _types(schema, document) == {"object"}]
    if not objects or len(objects) < len(schemas):
        return False
    required = [_required(schema, document) for schema in objects]
    for name in sorted(set.intersection(*required)):
        document.spend(len(objects))
        members = [document.resolve(as_object(schema.get("properties", {})).get(name, True)) for schema in objects]
        values = [_tags(member) for member in members]
        if all(values) and sum(map(len, values)) == len(set.union(*values)):
            return True
    return False


def _tags(schema: JsonValue) -> set[tuple[str, JsonValue]]:
    """Return the texts and numbers that a schema lists, with their types; none if it lists others, or no values."""
    listed = _listed(schema) if isinstance(schema, dict) else None
    tags = [(_type_of(value), value) for value in listed or [] if isinstance(value, str | int | float)]
    return set(tags) if listed is not None and len(tags) == len(listed) else set()


class _Comparison:
    """Tells where it is plain to see that no value follows two schemas."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._remaining = MAX_COMPARISONS

    def are_disjoint(self, one: JsonValue, other: JsonValue, depth: int = 0) -> bool:
        """Return whether the types, the listed values, or a member that one requires tell the schemas apart.

        Raises NotExpressible beyond MAX_COMPARISONS.
        """
        self._document.spend()
        self._remaining -= 1
        if self._remaining < 0:
            raise NotExpressible
        one, other = self._document.resolve(one), self._document.resolve(other)
        if not isinstance(one, dict) or not isinstance(other, dict):
            return one is False or other is False
        listed, others_listed = _listed(one), _listed(other)
        if listed is not None and others_listed is not None:
            self._document.spend(len(listed) * len(others_listed) // VALUES_PER_WORK)
            return not any(is_equal(value, another) for value in listed for another in others_listed)
        common = _types(one, self._document) & _types(other, self._document)
        return not common or (common == {"object"} and depth < MAX_DEPTH and self._member_tells(one, other, depth))

    def _member_tells(self, one: JsonObject, other: JsonObject, depth: int) -> bool:
        required = _required(one, self._document) | _required(other, self._document)
        members, others = as_object(one.get("properties", {})), as_object(other.get("properties", {}))
        shared = [name for name in members if name in others and name in required]
        return any(self.are_disjoint(members[name], others[name], depth + 1) for name in shared)


def _listed(schema: JsonObject) -> list[JsonValue] | None:
    """Return the values that a schema lists; None if it lists none, or too many to compare."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) and len(values) <= MAX_LISTED else None


def _required(schema: JsonObject, document: Document) -> set[str]:
    """Return the names of the members that an object must have. Raises TooMuchWork, NotExpressible."""
    names = as_list(schema.get("required", []))
    document.spend(len(names) // VALUES_PER_WORK)
    return set(texts(names))


def _types(schema: JsonObject, document: Document) -> set[str]:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        types = map(_type_of, values)
    else:
        kind = schema.get("type", list(ALL_TYPES))
        values = [kind] if isinstance(kind, str) else as_list(kind)
        types = map(str, values)
    document.spend(len(values) // VALUES_PER_WORK)
    return {"number" if one == "integer" else one for one in types}


def _type_of(value: JsonValue) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
