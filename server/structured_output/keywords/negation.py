"""Negate a schema: its values are those that the schema refuses."""

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

from server.strict_json import JsonValue
from server.structured_output.keywords.document import (
    ANNOTATIONS,
    MAX_REFERENCES,
    Document,
    JsonObject,
    NotExpressible,
    all_of,
    any_of,
    as_count,
    as_list,
    as_number,
    as_object,
    other_types,
    texts,
)

EXACT = 1 << 53  # llguidance's bounds are float64: integers beyond it are rounded
ANY_CHARACTERS = "(?s:.*)"
MAX_DEPTH = 64  # of schemas inside one another, through references too
MAX_WORD_CHARS = 64  # an expression for other words nests as deeply


class Negation:
    """Negates the schemas of one document. A schema that it makes contains parts of the client's as they are."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._num_references = 0
        self._depth = 0  # of the schemas that are being negated

    def of(self, schema: JsonValue) -> JsonValue:
        """Return the schema of all values that are not valid by this one. Raises NotExpressible."""
        self._document.spend()
        if isinstance(schema, bool):
            return not schema
        if self._depth == MAX_DEPTH:
            raise NotExpressible
        self._depth += 1
        try:
            return self._of_keywords(as_object(schema))
        finally:
            self._depth -= 1

    def _of_keywords(self, schema: JsonObject) -> JsonValue:
        alternatives = []
        for keyword, value in schema.items():
            if keyword in ANNOTATIONS or keyword not in KNOWN:
                continue
            if keyword not in _NEGATIONS:
                raise NotExpressible
            alternatives.append(_NEGATIONS[keyword](self, value, schema))
        self._document.spend(len(alternatives))
        return any_of(alternatives)

    def _of_reference(self, value: JsonValue, _: JsonObject) -> JsonValue:
        if self._num_references == MAX_REFERENCES:  # or a recursive schema
            raise NotExpressible
        self._num_references += 1
        try:
            return self.of(self._document.target(value))
        finally:
            self._num_references -= 1

    def _of_not(self, value: JsonValue, _: JsonObject) -> JsonValue:
        return value

    def _of_any_of(self, value: JsonValue, _: JsonObject) -> JsonValue:
        return all_of([self.of(schema) for schema in as_list(value)])

    def _of_all_of(self, value: JsonValue, _: JsonObject) -> JsonValue:
        return any_of([self.of(schema) for schema in as_list(value)])

    def _of_one_of(self, value: JsonValue, _: JsonObject) -> JsonValue:
        """None of them, or two at least."""
        pairs = [all_of(pair) for pair in combinations(as_list(value), 2)]
        self._document.spend(len(pairs))
        return any_of([self._of_any_of(value, {}), *pairs])

    def _of_if(self, value: JsonValue, schema: JsonObject) -> JsonValue:
        cases = []
        if "then" in schema:
            cases.append(all_of([value, self.of(schema["then"])]))
        if "else" in schema:
            cases.append(all_of([self.of(value), self.of(schema["else"])]))
        return any_of(cases)

    def _of_case(self, _: JsonValue, schema: JsonObject) -> JsonValue:
        """`then` and `else` count with their `if`."""
        return False

    def _of_properties(self, value: JsonValue, _: JsonObject) -> JsonValue:
        return any_of([_member(name, self.of(schema)) for name, schema in as_object(value).items()])

    def _of_required(self, value: JsonValue, _: JsonObject) -> JsonValue:
        names = texts(value)
        self._document.spend(len(names))
        return any_of([{"type": "object", "properties": {name: False}} for name in names])

    def _of_dependent_required(self, value: JsonValue, _: JsonObject) -> JsonValue:
        return any_of([self._of_dependency(name, {"required": names}) for name, names in as_object(value).items()])

    def _of_dependent_schemas(self, value: JsonValue, _: JsonObject) -> JsonValue:
        return any_of([self._of_dependency(name, schema) for name, schema in as_object(value).items()])

    def _of_dependency(self, name: str, schema: JsonValue) -> JsonValue:
        return all_of([{"type": "object", "required": [name]}, self.of(schema)])

    def _of_prefix_items(self, value: JsonValue, _: JsonObject) -> JsonValue:
        schemas = [self.of(schema) for schema in as_list(value)]
        self._document.spend(len(schemas) ** 2)
        wrong: list[JsonValue] = [
            {"type": "array", "minItems": i + 1, "prefixItems": [*[True] * i, schema]}
            for i, schema in enumerate(schemas)
            if schema is not False
        ]
        return any_of(wrong)

    def _of_contains(self, value: JsonValue, schema: JsonObject) -> JsonValue:
        if schema.get("minContains", 1) != 1 or "maxContains" in schema:
            raise NotExpressible
        return {"type": "array", "items": self.of(value)}

    def _of_values(self, value: JsonValue, _: JsonObject) -> JsonValue:
        values = as_list(value)
        self._document.spend(len(values) + sum(len(one) for one in values if isinstance(one, str)) // 8)
        return other_than(values)

    def _of_value(self, value: JsonValue, _: JsonObject) -> JsonValue:
        return other_than([value])

    def _of_type(self, value: JsonValue, _: JsonObject) -> JsonValue:
        types = [value] if isinstance(value, str) else texts(value)
        if "integer" in types and "number" not in types:
            raise NotExpressible  # numbers that are no integers
        return other_types(types)

    def _of_items(self, value: JsonValue, schema: JsonObject) -> JsonValue:
        if value is False:  # one more than those with a schema of their own
            return {"type": "array", "minItems": len(as_list(schema.get("prefixItems", []))) + 1}
        return self._of_true(value, schema)

    def _of_true(self, value: JsonValue, _: JsonObject) -> JsonValue:
        """A keyword that is negated only where it allows everything."""
        if value is True or value == {}:
            return False
        raise NotExpressible

    def _of_false(self, value: JsonValue, _: JsonObject) -> JsonValue:
        if value is False:
            return False
        raise NotExpressible


def _member(name: str, schema: JsonValue) -> JsonValue:
    return False if schema is False else {"type": "object", "required": [name], "properties": {name: schema}}


def _at_most(keyword: str, kind: str) -> Callable[[Negation, JsonValue, JsonObject], JsonValue]:
    """Return the negation of a least number: at most one less."""

    def negate(_: Negation, value: JsonValue, __: JsonObject) -> JsonValue:
        least = as_count(value)
        return {"type": kind, keyword: least - 1} if least else False

    return negate


def _at_least(keyword: str, kind: str) -> Callable[[Negation, JsonValue, JsonObject], JsonValue]:
    def negate(_: Negation, value: JsonValue, __: JsonObject) -> JsonValue:
        return {"type": kind, keyword: as_count(value) + 1}

    return negate


def _bound(keyword: str) -> Callable[[Negation, JsonValue, JsonObject], JsonValue]:
    def negate(_: Negation, value: JsonValue, __: JsonObject) -> JsonValue:
        return {"type": "number", keyword: as_number(value)}

    return negate


_NEGATIONS: dict[str, Callable[[Negation, JsonValue, JsonObject], JsonValue]] = {
    "$ref": Negation._of_reference,
    "not": Negation._of_not,
    "anyOf": Negation._of_any_of,
    "allOf": Negation._of_all_of,
    "oneOf": Negation._of_one_of,
    "if": Negation._of_if,
    "then": Negation._of_case,
    "else": Negation._of_case,
    "properties": Negation._of_properties,
    "required": Negation._of_required,
    "dependentRequired": Negation._of_dependent_required,
    "dependentSchemas": Negation._of_dependent_schemas,
    "prefixItems": Negation._of_prefix_items,
    "contains": Negation._of_contains,
    "minContains": Negation._of_case,
    "maxContains": Negation._of_case,
    "enum": Negation._of_values,
    "const": Negation._of_value,
    "type": Negation._of_type,
    "items": Negation._of_items,
    "additionalProperties": Negation._of_true,
    "propertyNames": Negation._of_true,
    "unevaluatedProperties": Negation._of_true,
    "unevaluatedItems": Negation._of_true,
    "uniqueItems": Negation._of_false,
    "minLength": _at_most("maxLength", "string"),
    "minItems": _at_most("maxItems", "array"),
    "minProperties": _at_most("maxProperties", "object"),
    "maxLength": _at_least("minLength", "string"),
    "maxItems": _at_least("minItems", "array"),
    "maxProperties": _at_least("minProperties", "object"),
    "minimum": _bound("exclusiveMaximum"),
    "maximum": _bound("exclusiveMinimum"),
    "exclusiveMinimum": _bound("maximum"),
    "exclusiveMaximum": _bound("minimum"),
}
_OTHERS = ("pattern", "format", "multipleOf", "patternProperties", "additionalItems", "dependencies", "$dynamicRef")
KNOWN = frozenset(_NEGATIONS) | frozenset(_OTHERS) | {"$recursiveRef"}  # any other keyword is an annotation


def other_than(values: Sequence[JsonValue]) -> JsonValue:
    """Return the schema of all values but these.

    Raises NotExpressible for objects, arrays, long words and large integers.
    """
    if any(isinstance(value, dict | list) or len(str(value)) > MAX_WORD_CHARS for value in values):
        raise NotExpressible
    strings = {value for value in values if isinstance(value, str)}
    flags = {value for value in values if isinstance(value, bool)}
    numbers = {value for value in values if isinstance(value, int | float) and not isinstance(value, bool)}
    partial = {"string": strings, "boolean": flags, "number": numbers, "null": {None} & set(values)}
    alternatives = [other_types([name for name, some in partial.items() if some])]
    if strings:
        alternatives.append({"type": "string", "pattern": f"^{_other_text(strings)}$"})
    alternatives += [{"const": not flag} for flag in flags if len(flags) == 1]
    return any_of([*alternatives, *_intervals(sorted(numbers))])


def _intervals(numbers: Sequence[int | float]) -> list[JsonValue]:
    """Return the schemas of the numbers below, between and above these."""
    if any(abs(number) > EXACT for number in numbers):
        raise NotExpressible
    if not numbers:
        return []
    between: list[JsonValue] = [
        {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high} for low, high in pairwise(numbers)
    ]
    below: JsonObject = {"type": "number", "exclusiveMaximum": numbers[0]}
    return [below, *between, {"type": "number", "exclusiveMinimum": numbers[-1]}]


def _other_text(words: set[str]) -> str:
    """Return a regular expression for all texts but these words.

    One that starts as no word does goes on as it likes; behind the first character of a word come all texts but the
    rests of words.
    """
    rests: dict[str, set[str]] = {}
    for word in words - {""}:
        if "\ud800" <= word[0] <= "\udfff":
            raise NotExpressible  # half of a surrogate pair
        rests.setdefault(word[0], set()).add(word[1:])
    others = "".join(map(_character, sorted(rests)))
    start = f"[^{others}]{ANY_CHARACTERS}" if rests else "(?s:.+)"
    parts = [start, *(_character(first) + _other_text(rest) for first, rest in sorted(rests.items()))]
    return f"({'' if '' in words else '|'}{'|'.join(parts)})"


def _character(char: str) -> str:
    """Write a character of a regular expression, also between brackets."""
    return char if char.isascii() and char.isalnum() else f"\\U{ord(char):08X}"
