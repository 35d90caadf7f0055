"""server/structured_output/keywords/numbers.py: texts of numbers follow their bounds, by the package jsonschema."""

import json
import random
from typing import Any

import jsonschema
import pytest

from server.structured_output.keywords.numbers import FARTHEST, with_bounds_that_hold
from tests.server.structured_output.keywords.test_rewriting import Grammar

BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
ENDS = (0, 1, -1, 2, 3, 10, -10, 20, 0.5, -0.5, 2.5, -1.5, 10.9, -10.25, 19.5, 1.001, -1.001, 0.1, -0.1, 1e-3, 1e-5)
STEPS = (0, 0.5, -0.5, 0.1, -0.1, 1, -1, 1e-6, -1e-6)


def texts_near(schema: dict[str, Any]) -> set[str]:
    ends = [schema[keyword] for keyword in BOUNDS if keyword in schema]
    near = {f"{end + step:.8f}".rstrip("0").rstrip(".") for end in ends for step in STEPS}
    return near - {"-0"} | {"0", "-0", "0.0", "-0.0"}


def test_no_text_beyond_the_bounds_is_allowed(scale: int) -> None:
    rng, num_allowed = random.Random(0), 0
    for _ in range(200 * scale):
        bounds = {keyword: rng.choice(ENDS) for keyword in rng.sample(BOUNDS, rng.choice([1, 2, 2, 3]))}
        grammar = Grammar({"type": "number", **bounds})
        for text in () if grammar.fault else sorted(texts_near(bounds)):
            if grammar.allows(text):
                jsonschema.validate(json.loads(text), {"type": "number", **bounds})
                num_allowed += 1
    assert num_allowed > 500 * scale


@pytest.mark.parametrize(
    ("bounds", "allowed", "refused"),
    [
        ({"exclusiveMinimum": 0, "maximum": 0.5}, ["0.5", "0.00000000000000000002", "0.1"], ["0", "0.0", "0.51"]),
        ({"exclusiveMinimum": 0, "maximum": 1e-19}, ["0.0000000000000000001"], ["0", "0.1"]),
        ({"exclusiveMinimum": 10.0, "exclusiveMaximum": 10.9}, ["10.1", "10.000000000001"], ["10", "10.0", "10.9"]),
        ({"minimum": -1.5, "exclusiveMaximum": -1}, ["-1.5", "-1.01"], ["-1", "-1.0"]),
        ({"minimum": -(2**63), "maximum": 2**63 - 1}, ["9", str(FARTHEST), str(-FARTHEST)], []),
        ({"minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38}, ["0.25", "-7"], []),
        ({"minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308}, ["1e300", "-1e300"], []),
        ({"minimum": 1e-300}, ["1", "0.001"], ["0", "-1"]),
        ({"maximum": -5e-324}, ["-1", "-0.001"], ["0", "1"]),
    ],
    ids=str,
)
def test_bounds_close_to_one_another_and_far_from_0(bounds: Any, allowed: list[str], refused: list[str]) -> None:
    grammar = Grammar({"type": "number", **bounds})
    assert not grammar.fault
    assert all(map(grammar.allows, allowed)) and not any(map(grammar.allows, refused))


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"exclusiveMinimum": 0}, {"maximum": 0.5}]},
        {"exclusiveMinimum": 0, "$ref": "#/$defs/a", "$defs": {"a": {"maximum": 0.5}}},
        {"exclusiveMinimum": 0, "anyOf": [{"maximum": 0.5}, {"maximum": -0.5}]},
    ],
    ids=str,
)
def test_bounds_that_meet_from_several_places(schema: dict[str, Any]) -> None:
    grammar = Grammar({"type": "number", **schema})
    assert grammar.allows("0.5") and grammar.allows("0.001") and not grammar.allows("0")


@pytest.mark.parametrize("kind", ["integer", "number"])
def test_the_integers_of_64_bits_are_a_range(kind: str) -> None:
    grammar = Grammar({"type": kind, "minimum": -(2**63), "maximum": 2**63 - 1})
    assert not grammar.fault and grammar.allows("-17") and not grammar.allows("1" + "0" * 19)


def test_counts_may_be_written_with_a_point() -> None:
    grammar = Grammar({"type": "string", "minLength": 1.0, "maxLength": 2.0})
    assert not grammar.fault and grammar.allows('"ab"') and not grammar.allows('"abc"')


@pytest.mark.parametrize("value", [{}, {"minimum": 0, "exclusiveMinimum": True, "maxLength": 3}, {"maxLength": 2.5}])
def test_what_needs_no_change_is_not_copied(value: dict[str, Any]) -> None:
    schema = {"properties": {"exclusiveMinimum": value}, "enum": [{"exclusiveMinimum": 0, "maximum": 0.5}]}
    assert with_bounds_that_hold(schema) is schema


def test_the_clients_schema_stays_as_it_is() -> None:
    schema: dict[str, Any] = {"items": {"exclusiveMinimum": 0, "maximum": 0.5}}
    assert with_bounds_that_hold(schema)["items"] != schema["items"] == {"exclusiveMinimum": 0, "maximum": 0.5}
