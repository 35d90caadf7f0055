"""server/schemas/closed_objects.py: which objects of a tool's schema have no members but those described."""

from typing import Any

import jsonschema
import pytest

from server.schemas.closed_objects import closed

A: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
OPEN: list[dict[str, Any]] = [
    {"type": "object"},
    {**A, "additionalProperties": {"type": "integer"}},
    {**A, "patternProperties": {"^b": {}}},
    {**A, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    {**A, "required": ["b"]},
    {"allOf": [A, {"properties": {"b": {}}}]},
    {"allOf": [{"$ref": "#/$defs/x"}, {"required": ["b"]}], "$defs": {"x": A}},
]
CLOSED: list[tuple[dict[str, Any], Any, Any]] = [  # a schema, a valid value, and one that only the open schema allows
    (A, {"a": 1}, {"a": 1, "b": 1}),
    ({"properties": {"o": A}}, {"o": {"a": 1}}, {"o": {"b": 1}}),
    ({"properties": {"l": {"items": A}}}, {"l": [{"a": 1}]}, {"l": [{"b": 1}]}),
    ({"properties": {"o": {"anyOf": [A, {"type": "null"}]}}}, {"o": None}, {"o": {"b": 1}}),
    ({"properties": {"o": {"$ref": "#/$defs/x"}}, "$defs": {"x": A}}, {"o": {"a": 1}}, {"o": {"b": 1}}),
    ({"additionalProperties": A}, {"x": {"a": 1}}, {"x": {"b": 1}}),
]


@pytest.mark.parametrize("schema", OPEN, ids=str)
def test_an_object_that_may_have_other_members_stays_open(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema
    jsonschema.validate({"a": 1, "b": 2}, closed(schema))


@pytest.mark.parametrize(("schema", "valid", "invalid"), CLOSED, ids=str)
def test_an_object_that_describes_its_members_has_no_others(schema: dict[str, Any], valid: Any, invalid: Any) -> None:
    jsonschema.validate(invalid, schema)
    jsonschema.validate(valid, closed(schema))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(invalid, closed(schema))
