"""server/structured_output/keywords/: rewritten schemas allow the same values, by the package jsonschema."""

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import llguidance
import pytest

from server.errors import ApiError
from server.structured_output.constraints import schema_constraint
from server.structured_output.keywords.alternatives import exactly_one
from server.structured_output.keywords.document import Document, TooMuchWork
from server.structured_output.keywords.negation import Negation
from server.structured_output.keywords.rewriting import rewritten

Schema = dict[str, Any]
NAMES = ("a", "b", "c")
REPEATED = "a name is there twice"
SCALARS = (None, True, False, 0, 1, 2, 3.5, -1, "", "x", "y", "xyz")
ARRAYS = ([], [1], ["x"], [1, 2], [2, 1], [1, 1], ["x", "y"], ["x", "x"], [1, 2, 1], ["x", 1, None], [3, 3, 3, 3])
OBJECTS = [
    dict(zip(names, values, strict=False))
    for names in ((), ("a",), ("b",), ("d",), ("a", "b"), ("a", "c"), ("b", "a", "d"), ("a", "b", "c"))
    for values in ((1, "x", 2), ("x", 1, True), (0, 0, 0))
]
VALUES: list[Any] = [*SCALARS, *ARRAYS, *OBJECTS, {"a": {"b": 1}}, {"a": {"a": "x", "b": "y"}}, {"b": [1, 1]}]
KIND_OR_SIZE: Schema = {  # as pydantic and OpenAPI write a member that depends on another
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
    "if": {"properties": {"a": {"const": "x"}}},
    "then": {"required": ["b"]},
    "else": {"properties": {"b": False}},
}
COLOURS: Schema = {"type": "array", "items": {"enum": ["x", "y", 1]}, "uniqueItems": True}
SOME: Schema = {"type": "object", "properties": {name: {} for name in NAMES}, "additionalProperties": False}
HELD: list[Schema] = [
    KIND_OR_SIZE,
    COLOURS,
    {**COLOURS, "minItems": 1, "maxItems": 2},
    {"uniqueItems": True, "items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "boolean"}}},
    {"type": "array", "uniqueItems": True, "maxItems": 1},
    {"type": "array", "uniqueItems": False},
    {"type": "array", "items": {"enum": [1, 1.0, 2]}, "uniqueItems": True},
    {"not": {"const": "x"}},
    {"type": "string", "not": {"enum": ["", "x", "xyz"]}},
    {"type": "integer", "not": {"enum": [0, 1, 3]}},
    {"not": {"enum": [None, True, 1, "x"]}},
    {"not": {"type": ["object", "array"]}},
    {"not": {"anyOf": [{"type": "string", "minLength": 2}, {"minimum": 1}, {"type": "null"}]}},
    {"not": {"allOf": [{"type": "number"}, {"exclusiveMinimum": 0}, {"exclusiveMaximum": 3}]}},
    {"not": {"not": {"type": "object"}}},
    {"not": {"required": ["a", "b"]}},
    {"not": {"properties": {"a": {"type": "number"}}}},
    {"not": {"prefixItems": [{"const": 1}, {"type": "number"}], "items": False}},
    {"not": {"contains": {"type": "string"}}},
    {"not": {"maxItems": 1}},
    {"not": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "string"}}},
    {"not": {"oneOf": [{"type": ["string", "number"]}, {"type": "number", "minimum": 1}]}},
    {"not": {"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {"required": ["d"]}}},
    {"not": {"dependentRequired": {"a": ["b"]}}},
    {"if": {"type": "object", "required": ["a"]}, "then": {"required": ["b"]}},
    {"if": {"type": "number"}, "else": {"type": "string"}},
    {"then": {"type": "string"}},
    {"dependentRequired": {"a": ["b"], "b": ["a"]}},
    {"dependentSchemas": {"a": {"properties": {"b": {"type": "string"}}}, "d": False}},
    {**SOME, "dependentRequired": {"a": ["b", "c"]}},
    {"contains": {"type": "string"}, "maxItems": 3},
    {"contains": {"const": 1}, "minContains": 2, "maxItems": 4},
    {"contains": {"const": 1}, "maxContains": 1, "maxItems": 3},
    {"contains": {"const": 1}, "minContains": 0, "maxContains": 1, "maxItems": 3},
    {"contains": {"const": 1}, "minContains": 0},
    {"contains": {"const": 1}, "minContains": 0, "maxContains": 0},
    {"contains": {}, "minContains": 2, "maxContains": 3},
    {"prefixItems": [{}, {}], "items": False, "contains": {"const": 1}},
    {"propertyNames": {"type": "string"}},
    {"propertyNames": {"enum": ["a", "d"]}, "additionalProperties": {"type": "integer"}},
    {"propertyNames": {"pattern": "^[ab]"}, "properties": {"a": {"type": "integer"}, "d": {}}},
    {"propertyNames": {"minLength": 2}},
    {"propertyNames": False},
    {**SOME, "minProperties": 2},
    {**SOME, "minProperties": 2, "required": ["a"]},
    {**SOME, "maxProperties": 1, "required": ["a"]},
    {**SOME, "minProperties": 1, "maxProperties": 2},
    {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
    {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 2}, {"type": "null"}]},
    {"oneOf": [{"type": "number"}, {"minimum": 2}]},
    {"properties": {"a": {}}, "unevaluatedProperties": False},
    {"$ref": "#/$defs/n", "properties": {"b": {}}, "unevaluatedProperties": {"type": "integer"}}
    | {"$defs": {"n": {"allOf": [{"properties": {"a": {"type": "string"}}}]}}},
    {"additionalProperties": {"type": "integer"}, "unevaluatedProperties": False},
    {"prefixItems": [{"type": "integer"}], "unevaluatedItems": {"type": "string"}},
    {"items": {"type": "integer"}, "unevaluatedItems": False},
]
# A schema, and the path of what no grammar of bounded size can hold.
NOT_EXPRESSIBLE: list[tuple[Schema, str]] = [
    ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "items": {"enum": list(range(6))}, "uniqueItems": True}, "uniqueItems"),
    ({"prefixItems": [{}, {}], "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "contains": {"const": 1}}, "contains"),
    ({"type": "array", "contains": {"pattern": "a"}, "maxContains": 1, "maxItems": 3}, "contains"),
    ({"not": {"pattern": "a"}}, "not"),
    ({"not": {"format": "date"}}, "not"),
    ({"not": {"type": "integer"}}, "not"),
    ({"not": {"multipleOf": 2}}, "not"),
    ({"not": {"const": {"a": 1}}}, "not"),
    ({"not": {"const": 1 << 60}}, "not"),
    ({"not": {"const": "x" * 200}}, "not"),
    ({"not": {"additionalProperties": False}}, "not"),
    ({"if": {"pattern": "a"}, "then": {"minLength": 3}}, "if"),
    ({"propertyNames": {"format": "date"}}, "propertyNames"),
    ({"propertyNames": {"pattern": "^a"}, "patternProperties": {"b$": {}}}, "propertyNames"),
    ({"anyOf": [{"properties": {"a": {}}}, {}], "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"allOf": [{"prefixItems": [{}]}], "unevaluatedItems": False}, "unevaluatedItems"),
    ({"properties": {"a": {}, "b": {}}, "minProperties": 2}, "minProperties"),
    ({"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, "oneOf"),
    ({"$dynamicRef": "#a"}, "$dynamicRef"),
    # the first uniqueItems is rewritten, the second is not
    (
        {"allOf": [{"maxItems": 1, "uniqueItems": True}, {"items": {"uniqueItems": True}}]},
        "allOf[1].items.uniqueItems",
    ),
    (
        {"if": {"type": "object"}, "then": {"properties": {"a": {"uniqueItems": True}}}},
        "then.properties[0].uniqueItems",
    ),
]


class Grammar:
    """A schema's grammar, read byte by byte."""

    tokenizer = llguidance.LLTokenizer("byte")

    def __init__(self, schema: Schema) -> None:
        self._matcher = llguidance.LLMatcher(self.tokenizer, schema_constraint(schema, "p").grammar, log_level=0)
        self.fault = self._matcher.get_error()

    def allows(self, text: str) -> bool:
        """Return whether the whole text is allowed, and may end there."""
        matcher, ids = self._matcher.deep_copy(), list(text.encode())
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    def random_text(self, rng: random.Random, max_bytes: int = 80) -> str | None:
        """Return a random text; None if it is still incomplete at its maximum. Fails where nothing may follow."""
        matcher, text = self._matcher.deep_copy(), bytearray()
        while len(text) < max_bytes:
            mask = matcher.compute_bitmask()
            allowed = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
            if matcher.is_accepting() and (not allowed or rng.random() < 0.3):
                return text.decode(errors="replace")
            assert allowed, f"nothing may follow {text!r}"
            plain = [byte for byte in allowed if chr(byte) in '"[]{},:abcdxyz123tfnrueals'] or allowed
            text.append(rng.choice(plain if rng.random() < 0.95 else allowed))
            assert matcher.consume_tokens([text[-1]])
        return None


def texts_of(value: Any) -> Iterator[str]:
    """Yield a value's JSON with its members in every order: a grammar allows one of them."""
    if isinstance(value, dict):
        for names in itertools.permutations(value):
            for parts in itertools.product(*(list(texts_of(value[name])) for name in names)):
                yield "{" + ",".join(f'"{name}":{part}' for name, part in zip(names, parts, strict=True)) + "}"
    elif isinstance(value, list):
        for parts in itertools.product(*(list(texts_of(item)) for item in value)):
            yield "[" + ",".join(parts) + "]"
    else:
        yield json.dumps(value)


def without_repetition(members: list[tuple[str, Any]]) -> Any:
    """Return the object, or REPEATED for names that a grammar cannot keep from being there twice (docs/api.md)."""
    return dict(members) if len(dict(members)) == len(members) else REPEATED


def check(schema: Schema, grammar: Grammar, rng: random.Random) -> None:
    """Compare with jsonschema: which values are allowed, and whether random texts of the grammar are valid."""
    validator = jsonschema.Draft202012Validator(schema)
    for value in VALUES:
        allowed = any(grammar.allows(text) for text in texts_of(value))
        assert allowed == validator.is_valid(value), f"{json.dumps(value)} of {json.dumps(schema)}"
    for _ in range(5):
        text = grammar.random_text(rng)
        value = None if text is None else json.loads(text, object_pairs_hook=without_repetition)
        if text is not None and REPEATED not in str(value):
            assert validator.is_valid(value), f"{text} of {json.dumps(schema)}"


@pytest.mark.parametrize("schema", HELD, ids=lambda schema: json.dumps(schema)[:70])
def test_a_rewritten_schema_allows_the_same_values(schema: Schema) -> None:
    grammar = Grammar(schema)
    assert not grammar.fault
    assert rewritten(schema).kept == ()
    check(schema, grammar, random.Random(0))


@pytest.mark.parametrize(("schema", "path"), NOT_EXPRESSIBLE, ids=lambda value: json.dumps(value)[:70])
def test_what_no_small_grammar_can_hold_stays_and_is_refused(schema: Schema, path: str) -> None:
    grammar = Grammar(schema)
    assert grammar.fault
    if path != "$dynamicRef":
        assert rewritten(schema).kept[0][1] == path


def random_schema(rng: random.Random, depth: int = 0) -> Schema:
    """Return a schema of a few keywords, among them those that are rewritten."""

    def inner() -> Any:
        return rng.random() < 0.3 if depth == 2 or rng.random() < 0.1 else random_schema(rng, depth + 1)

    def some(*choices: Any) -> Any:
        return rng.choice(choices)

    makers: dict[str, Any] = {
        "type": lambda: some("string", "integer", "number", "object", "array", ["object", "null"], ["string", "array"]),
        "const": lambda: some(1, "x", True),
        "enum": lambda: rng.sample([1, 2, "x", "y", None, True], 3),
        "minimum": lambda: some(0, 1, 2),
        "exclusiveMaximum": lambda: some(1, 2, 3.5),
        "minLength": lambda: some(1, 2),
        "maxLength": lambda: some(0, 2),
        "properties": lambda: {name: inner() for name in rng.sample(NAMES, 2)},
        "required": lambda: rng.sample(NAMES, some(1, 2)),
        "additionalProperties": lambda: some(False, {"type": "integer"}),
        "items": inner,
        "prefixItems": lambda: [inner()],
        "maxItems": lambda: some(1, 2, 3),
        "minItems": lambda: some(1, 2),
        "uniqueItems": lambda: some(True, False),
        "contains": inner,
        "maxContains": lambda: some(1, 2),
        "minContains": lambda: some(0, 1, 2),
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
        "anyOf": lambda: [inner(), inner()],
        "oneOf": lambda: [inner(), inner()],
        "allOf": lambda: [inner()],
        "dependentRequired": lambda: {some(*NAMES): [some(*NAMES)]},
        "dependentSchemas": lambda: {some(*NAMES): inner()},
        "propertyNames": lambda: some({"enum": ["a", "b"]}, {"pattern": "^[ab]$"}, {"maxLength": 1}, {}),
        "unevaluatedProperties": lambda: some(False, {"type": "string"}),
        "unevaluatedItems": lambda: some(False, {"type": "integer"}),
        "minProperties": lambda: some(1, 2),
        "maxProperties": lambda: some(1, 2),
    }
    return {keyword: makers[keyword]() for keyword in rng.sample(list(makers), rng.randint(1, 4))}


def test_random_schemas_allow_the_same_values_or_are_refused(scale: int) -> None:
    rng = random.Random(7)
    num_held = 0
    for _ in range(400 * scale):
        schema = random_schema(rng)
        try:
            grammar = Grammar(schema)
        except ApiError as error:
            assert "too large" in error.message
            continue
        if not grammar.fault:
            num_held += 1
            check(schema, grammar, rng)
    assert num_held > 100 * scale


def test_a_schema_without_such_keywords_stays_as_it_is() -> None:
    schema: Schema = {"type": "object", "properties": {"if": {"type": "string"}}, "required": ["if"]}
    assert rewritten(schema).schema is schema


def test_a_schema_whose_references_lead_into_such_a_keyword_stays_as_it_is() -> None:
    schema: Schema = {"not": {"type": "string"}, "items": {"$ref": "#/not"}}
    assert rewritten(schema).schema is schema


def test_a_name_that_is_a_keyword_does_not_count_as_one() -> None:
    named = {"$defs": {"dependencies": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/dependencies"}}}
    assert "not" not in str(rewritten({**named, "not": {"type": "null"}}).schema)
    hidden: Schema = {"not": {"type": "string"}, "properties": {"not": {"not": {}}}}
    for reference in ("#/properties/not/not", "#/%6Eot"):
        inside = {**hidden, "items": {"$ref": reference}}
        assert rewritten(inside).schema is inside


HUGE: list[Schema] = [
    {"maxItems": 10**18, "contains": {"type": "string"}, "minContains": 5 * 10**17},
    {"maxItems": 1e20, "contains": {"type": "string"}, "minContains": 5e19},
    {"maxItems": 10**18, "contains": {"type": "string"}, "minContains": 0, "maxContains": 10**18},
    {"maxItems": 3, "contains": {"type": "string"}, "minContains": 10**18},
    {"items": {"enum": [*range(20_000)]}, "uniqueItems": True},
    {"items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 10**18},
    {"items": {"enum": [*range(400)]}, "uniqueItems": True},
    {"minProperties": 10**18, "additionalProperties": False, "properties": {f"p{i}": {} for i in range(9)}},
]


@pytest.mark.parametrize("schema", HUGE, ids=lambda value: json.dumps(value)[:70])
def test_numbers_of_choices_are_not_computed_beyond_their_bound(schema: Schema) -> None:
    """The exact ones have up to 10^18 digits: this test would not end."""
    assert rewritten(schema).schema


def test_work_grows_with_listed_values_that_are_negated_or_compared() -> None:
    words = [f"{i:x}" for i in range(2000)]
    repeated: Schema = {"$defs": {"e": {"enum": words}}, "allOf": [{"not": {"$ref": "#/$defs/e"}}] * 500}
    assert rewritten(repeated).schema is repeated
    lists = [{"enum": [f"{i},{j}" for j in range(64)]} for i in range(60)]
    compared: Schema = {"oneOf": lists}
    assert rewritten(compared).schema is compared


def tagged(tags: list[Any], required: bool = True) -> Schema:
    """A union of objects, each with its value of `kind`, behind a member that all share."""
    return {
        "oneOf": [
            {
                "type": "object",
                "properties": {"id": {"type": "integer"}, "kind": {"const": tag}},
                "required": ["id", "kind"] if required else ["id"],
                "additionalProperties": False,
            }
            for tag in tags
        ]
    }


TAGS: list[list[Any]] = [[*range(250)], [f"k{i}" for i in range(250)], [True, "true", 1, 2.5]]


@pytest.mark.parametrize("tags", TAGS, ids=["integers", "texts", "mixed"])
def test_objects_that_a_member_tells_apart_are_no_matter_of_comparing_each_with_each(tags: list[Any]) -> None:
    grammar = Grammar(tagged(tags))
    assert not grammar.fault
    assert grammar.allows(json.dumps({"id": 7, "kind": tags[-1]}, separators=(",", ":")))
    assert not grammar.allows('{"id":7,"kind":null}')


@pytest.mark.parametrize(
    "schema",
    [tagged([1, 2, 1.0]), tagged(["a", "b", "a"]), tagged([1, 2], required=False)],
    ids=["equal numbers", "equal texts", "optional"],
)
def test_a_member_that_does_not_tell_objects_apart_is_no_tag(schema: Schema) -> None:
    """Of two alternatives with equal tags none may be followed, since both would be."""
    grammar = Grammar(schema)
    tag = schema["oneOf"][0]["properties"]["kind"]["const"]
    assert grammar.fault or not grammar.allows(json.dumps({"id": 7, "kind": tag}, separators=(",", ":")))


def with_names(names: list[str], kinds: list[Any]) -> Schema:
    return {"oneOf": [{"type": "object", "properties": {"kind": {"const": kind}}, "required": names} for kind in kinds]}


LONG: list[Schema] = [
    with_names([*(f"a{i}" for i in range(600)), "kind"], [*range(100)]),  # as a tag, each name is tried for each object
    with_names(["a"] * 9000, [*range(20)]),
    {"oneOf": [{"$ref": "#/a"}] * 30, "a": {"enum": [*range(9000)]}},
]


@pytest.mark.parametrize("schema", LONG, ids=["tags", "names", "values"])
def test_names_and_values_count_as_work(schema: Schema) -> None:
    with pytest.raises(TooMuchWork):
        exactly_one(schema["oneOf"], Document(schema, 200), lambda value: {"not": value})


def test_names_that_are_negated_count_as_work() -> None:
    """Those that are too many for one value stay, but have been made."""
    schema: Schema = {"type": "object", "required": [f"a{i}" for i in range(600)]}
    with pytest.raises(TooMuchWork):
        Negation(Document(schema, 200)).of({"allOf": [schema] * 20})


def test_a_recursive_schema_that_is_negated_stays_as_it_is() -> None:
    deep: Schema = {"$ref": "#/$defs/a"}
    for _ in range(10):
        deep = {"anyOf": [deep]}
    schema: Schema = {"$defs": {"a": deep}, "not": {"$ref": "#/$defs/a"}}
    assert "not" in rewritten(schema).schema


LENIENT: list[Schema] = [
    {"propertyNames": {"pattern": "(?<=a)b"}},
    {"allOf": [{"propertyNames": {"pattern": "^a"}}, {"propertyNames": {"maxLength": 5}}]},
    {"allOf": [{"patternProperties": {"b": {}}}], "propertyNames": {"pattern": "^a"}},
]


@pytest.mark.parametrize("schema", LENIENT, ids=str)
def test_leniently_a_keyword_is_not_rewritten_to_one_that_is_refused_even_then(schema: Schema) -> None:
    constraint = schema_constraint({"type": "object", **schema}, "tools", is_lenient=True)
    assert not llguidance.LLMatcher(Grammar.tokenizer, constraint.grammar, log_level=0).get_error()
    assert "propertyNames" in dict(constraint.kept)


def test_conditions_inside_conditions_are_bounded() -> None:
    """Each level needs the next one twice, as it is and negated."""
    schema: Schema = {"type": "string"}
    for i in range(40):
        schema = {"if": schema, "then": {"minLength": i}, "else": {"minimum": i}}
    assert rewritten(schema).schema is schema


def test_definitions_that_refer_to_one_another_are_bounded() -> None:
    links: Schema = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 3} for i in range(30)}
    schema: Schema = {"not": {"$ref": "#/$defs/d0"}, "$defs": {**links, "d30": {"type": "null"}}}
    assert rewritten(schema).schema is schema


def test_a_schema_that_would_become_too_large_stays_as_it_is() -> None:
    five = {"type": "array", "items": {"enum": ["a" * 9, "b" * 9, "c" * 9, "d" * 9, "e" * 9]}, "uniqueItems": True}
    assert Grammar({"properties": {"p": five}}).fault == ""
    assert "uniqueItems" in Grammar({"properties": {f"p{i}": five for i in range(9)}}).fault


def test_the_combinations_of_keywords_are_bounded() -> None:
    """Of 2^9 combinations a grammar is made, of 2^10 none: the keyword stays, and a tool is followed without it."""
    needs = {f"a{i}": [f"b{i}"] for i in range(10)}
    assert Grammar({"dependentRequired": dict(list(needs.items())[:9])}).fault == ""
    assert rewritten({"dependentRequired": needs}).kept == (("dependentRequired", "dependentRequired"),)
    one_of = [{"properties": {f"p{j}": {"type": "string"} for j in range(15)}, "required": ["p1"]}] * 40
    assert rewritten({"oneOf": one_of}).schema == {"oneOf": one_of}
