"""server/schemas/structured.py: `response_format` and `structured_outputs`."""

from typing import Any

import pytest

from server.errors import ApiError
from server.schemas import CompletionRequest, validate
from tests.support.requests import PROMPT, refusal

SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "text", "json_schema": {"schema": SCHEMA}}},
            "response_format.json_schema",
            "invalid_value",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "text", "schma": {}}}, "response_format.schma", "unknown_parameter"),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json", "invalid_type"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "invalid_type"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "empty_array"),
        ({"grammar": {"type": "json", "value": SCHEMA}}, "grammar", "invalid_type"),
        ({"json_schema": "{"}, "json_schema", "invalid_type"),
        ({"json_schema": SCHEMA, "grammar": 'root ::= "a"'}, "grammar", "invalid_value"),
        ({"regex": ""}, "regex", "empty_string"),
        ({"regex": "a", "structured_outputs": {"regex": "a"}}, "regex", "invalid_value"),
    ],
    ids=str,
)
def test_a_format_that_is_incomplete_or_ambiguous_is_a_400(fields: dict[str, Any], param: str, code: str) -> None:
    assert refusal(CompletionRequest, PROMPT | fields) == (param, code)


def test_an_unknown_field_of_a_format_is_refused_with_the_reason() -> None:
    with pytest.raises(ApiError, match=r"'response_format.schma' is unknown.*could be a constraint"):
        validate(CompletionRequest, PROMPT | {"response_format": {"type": "text", "schma": {}}})
    with pytest.raises(ApiError, match=r"'response_format' has an unknown field\..*could be a constraint"):
        validate(CompletionRequest, PROMPT | {"response_format": {"type": "text", "\n": {}}})


@pytest.mark.parametrize("schema", [SCHEMA, ' {"type": "object"}'])
def test_a_schema_may_be_an_object_or_its_text(schema: object) -> None:
    request = validate(CompletionRequest, PROMPT | {"structured_outputs": {"json": schema}})
    assert request.structured_outputs is not None
    assert request.structured_outputs.json_schema == SCHEMA
