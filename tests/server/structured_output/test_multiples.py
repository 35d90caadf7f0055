"""server/structured_output/multiples.py: no `multipleOf`s reach llguidance whose automata are large."""

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ApiError
from server.structured_output.multiples import MAX_COMBINED, MAX_STATES, MAX_WORK, WorkBudget, count_states

Schema = dict[str, Any]
A, B = {"type": "integer", "multipleOf": 9973}, {"type": "integer", "multipleOf": 9967}
LCM = "least common multiple"


def both(first: Schema, second: Schema) -> Schema:
    return {"allOf": [first, second]}


def named(schema: Schema) -> Schema:
    return {"type": "object", "properties": {"p": schema}}


def properties(multiples: list[int]) -> Schema:
    return {"properties": {f"p{i}": {"type": "integer", "multipleOf": value} for i, value in enumerate(multiples)}}


def refusal(schema: Schema) -> str:
    with pytest.raises(ApiError) as caught:
        count_states(schema, "a.param")
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "a.param", "invalid_value")
    assert "'a.param'" in caught.value.message
    return caught.value.message


DEFS = {"$defs": {"a": A, "b": {"$ref": "#/$defs/a/x"}, "c/d~": B}}
MEETING: dict[str, Schema] = {
    "allOf": both(A, B),
    "anyOf": {"anyOf": [A, B]},
    "oneOf": {"oneOf": [A, B]},
    "a sibling": {**A, "allOf": [B]},
    "three levels": both({"anyOf": [{"oneOf": [A]}]}, {"allOf": [both(B, {})]}),
    "small numbers, many": {"allOf": [{"multipleOf": value} for value in (2, 3, 5, 7, 11, 13, 17)]},
    "decimals": both({"multipleOf": 0.9973}, {"multipleOf": 7}),
    "one decimal": {"type": "number", "multipleOf": 9999.9999},
    "a decimal of an integer": {"type": "integer", "multipleOf": 0.99999989},
    "$ref": {**DEFS, "allOf": [{"$ref": "#/$defs/a"}, B]},
    "$ref with a sibling": {**DEFS, "$ref": "#/$defs/a", "multipleOf": 9967},
    "$ref with escapes": both({"$ref": "#/x~1y/z%7e0"}, B) | {"x/y": {"z~": A}},
    "$ref to an item": both(B, {"$ref": "#/list/1"}) | {"list": [{}, A]},
    "$ref to the root": {**A, "properties": {"p": {"$ref": "#", "multipleOf": 9967}}},
    "$ref to a $ref": {**DEFS, "$defs": {"a": A, "b": {"$ref": "#/$defs/a"}}, "allOf": [{"$ref": "#/$defs/b"}, B]},
    "a recursive tree": {
        "$ref": "#/$defs/t",
        "$defs": {"t": {**A, "items": {"allOf": [{"$ref": "#/$defs/t"}, B]}}},
    },
    "properties of one name": both(named(A), named(B)),
    "properties of two levels": both(named(named(A)), {"anyOf": [named(named(B))]}),
    "additionalProperties": both(named(A), {"additionalProperties": B}),
    "patternProperties": {**named(A), "patternProperties": {"p": B}},
    "items": both({"items": A}, {"items": B}),
    "prefixItems and items": both({"prefixItems": [{}, A]}, {"items": B}),
    "prefixItems": both({"prefixItems": [{}, A]}, {"prefixItems": [True, B]}),
    "items as a list": both({"items": [A], "additionalItems": {}}, {"items": [B]}),
    "additionalItems": both({"items": [A]}, {"items": [], "additionalItems": B}),
    "inside an array of objects": {"type": "array", "items": both(named(A), named(B))},
}


@pytest.mark.parametrize("case", MEETING)
def test_multiples_that_meet_in_one_value_are_refused_if_their_least_common_multiple_is_large(case: str) -> None:
    message = refusal(MEETING[case])
    assert LCM in message and str(MAX_COMBINED) in message and "use smaller values" in message


APART: dict[str, Schema] = {
    "two properties": {"properties": {"a": A, "b": B}},
    "two positions": {"prefixItems": [A, B], "items": False},
    "a property and an item": {"properties": {"p": A}, "items": B},
    "two levels": {**named(A), "multipleOf": 9967},
    "unused definitions": {"$defs": {"a": both(A, B)}, **A, "properties": {"p": B}},
    "an example": {"examples": [both({"multipleOf": 9973}, {"multipleOf": 9967})], **A, "properties": {"p": B}},
}


@pytest.mark.parametrize("case", APART)
def test_multiples_of_different_values_add_up(case: str) -> None:
    assert count_states(APART[case], "a.param") == 9973 + 9967


def test_equal_automata_are_counted_once() -> None:
    assert count_states(properties([9973] * 500), "a.param") == 9973
    bounded = {f"p{i}": {"multipleOf": 50, "maximum": i} for i in range(1, 11)}
    assert count_states({"properties": bounded}, "a.param") == 500


def test_the_sum_of_all_automata_is_bounded() -> None:
    assert count_states(properties([9950, 9960, 9970]), "a.param") == 29_880
    message = refusal(properties([9950 + i for i in range(40)]))
    assert "add up" in message and str(MAX_STATES) in message and "fewer" in message


@pytest.mark.parametrize("value", [0, -1, 10_001, 10**9, 1e300, float("inf"), float("nan")])
def test_one_value_is_bounded_wherever_it_is(value: float) -> None:
    assert "at most 10000" in refusal({"items": {"not": {"multipleOf": value}}})
    assert "at most 10000" in refusal({"default": {"multipleOf": value}})  # a $ref may lead there


@pytest.mark.parametrize(("value", "states"), [(10_000, 10_000), (10_000.0, 10_000), (0.01, 1), (2.5, 25), (1e-300, 1)])
def test_decimals_count_as_integers(value: float, states: int) -> None:
    assert count_states({"multipleOf": value}, "a.param") == states


@pytest.mark.parametrize(
    "schema",
    [
        both({"$ref": "#name"}, B) | {"$defs": {"a": {**A, "$anchor": "name"}}},
        both({"$ref": "x"}, B) | {"$defs": {"a": {**A, "$id": "x"}}},
        both({"$ref": "http://h/x#/$defs/a"}, B) | {"$id": "http://h/x", "$defs": {"a": A}},
        both({"$ref": "#/$defs/none"}, B),
        both({"$dynamicRef": "#a"}, B),
        {"$defs": {"r": {"$id": "r", "$defs": {"a": A}, "allOf": [{"$ref": "#/$defs/a"}, B]}}, "$ref": "#/$defs/r"},
        {
            "$schema": "http://json-schema.org/draft-04/schema#",
            "definitions": {"r": {"id": "r", "multipleOf": 3}},
            "$ref": "#/definitions/r",
        },
    ],
)
def test_references_that_are_no_pointers_into_the_schema_are_refused_beside_multiples(schema: Schema) -> None:
    assert "JSON pointer" in refusal(schema)


def test_a_schema_without_multiples_may_refer_to_anything() -> None:
    assert count_states({"$ref": "http://h/x", "properties": {"multipleOf": {"type": "string"}}}, "a.param") == 0


def test_the_walk_itself_is_bounded() -> None:
    """Each of 2,000 properties in one of two lists of 200 schemas that apply to it."""
    wide = {"properties": {f"p{i}": {} for i in range(2000)}, "multipleOf": 3}
    message = refusal({"allOf": [wide, {"patternProperties": {f"x{i}": {} for i in range(200)}}]})
    assert str(MAX_WORK) in message


def test_a_small_schema_with_exponentially_many_combinations_is_refused() -> None:
    """Each path of properties and items leads to another subset of the definitions, as in a subset automaton."""
    to = [{"$ref": f"#/$defs/{i}"} for i in range(20)]
    definitions = {f"{i}": {"items": to[i + 1], "properties": {"p": to[i + 1]}} for i in range(19)}
    definitions["0"] = {"items": both(to[0], to[1]), "properties": {"p": to[0]}}
    assert "too many ways" in refusal({**to[0], "$defs": {**definitions, "19": {"multipleOf": 3}}})


def test_schemas_may_share_a_budget_of_work() -> None:
    budget = WorkBudget()
    schema = {"prefixItems": [{}] * (MAX_WORK // 3), "multipleOf": 3}
    assert count_states(schema, "a.param", budget) == 3
    assert count_states(schema, "a.param") == 3
    with pytest.raises(ApiError, match="too many ways"):
        count_states(schema, "a.param", budget)


def test_huge_least_common_multiples_are_never_computed() -> None:
    """With 1e-300 beside them, 1,000 numbers would have one of a million bits."""
    assert LCM in refusal({"allOf": [{"multipleOf": value} for value in (1e-300, *range(1, 1000))]})


@st.composite
def meeting_schemas(draw: st.DrawFn) -> tuple[Schema, list[str]]:
    """Draw a schema in which all numbers meet in one value, each on a path of its own, and the numbers as texts."""
    numbers = draw(st.lists(st.decimals("0.01", 400, places=2).map(lambda n: f"{n:f}"), min_size=1, max_size=5))
    path = draw(st.lists(st.sampled_from(["p", "q", "item"]), max_size=3))
    definitions: dict[str, Schema] = {}
    branches = []
    for number in numbers:
        branch: Schema = {"multipleOf": float(number)}
        for step in [*path[::-1], None]:
            branch = draw(st.sampled_from([lambda s: s, lambda s: {"anyOf": [s]}, lambda s: both({}, s)]))(branch)
            if draw(st.booleans()):
                name = f"d{len(definitions)}"
                definitions[name] = branch
                branch = {"$ref": f"#/$defs/{name}"}
            if step is not None:
                branch = {"items": branch} if step == "item" else {"properties": {step: branch}}
        branches.append(branch)
    return {draw(st.sampled_from(["allOf", "anyOf", "oneOf"])): branches, "$defs": definitions}, numbers


@given(meeting_schemas())
def test_the_least_common_multiple_is_that_of_the_fractions(drawn: tuple[Schema, list[str]]) -> None:
    schema, texts = drawn
    numbers = [Fraction(text) for text in texts]
    common = Fraction(math.lcm(*(n.numerator for n in numbers)), math.gcd(*(n.denominator for n in numbers)))
    places = next(p for p in range(3) if all((n * 10**p).denominator == 1 for n in numbers))
    expected = common * 10**places
    if expected > MAX_COMBINED:
        assert LCM in refusal(schema)
    else:
        assert count_states(schema, "a.param") == expected
