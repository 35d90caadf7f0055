"""server/schemas/responses_api/request.py: the chat that a Responses request becomes."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from server.schemas import ResponsesRequest, validate

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def without_nulls(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body without its null members, which count as absent."""
    return {name: value for name, value in body.items() if value is not None and name != "stream"}


def test_a_responses_request_becomes_the_expected_chat() -> None:
    request = validate(
        ResponsesRequest,
        {
            "model": "m",
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": "Weather?"},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
                {"type": "function_call", "call_id": "c1", "name": "get", "arguments": '{"city":"Oslo"}'},
                {"type": "function_call", "call_id": "c2", "name": "get", "arguments": '{"city":"Rome"}'},
                {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            ],
            "max_output_tokens": 7,
            "temperature": 0.5,
            "seed": 3,
            "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
            "tools": [{"type": "function", "name": "get", "description": "d", "parameters": SCHEMA}],
            "tool_choice": {"type": "function", "name": "get"},
            "parallel_tool_calls": False,
            "user": "u",
        },
    )
    calls = [
        {
            "id": c,
            "type": "function",
            "function": {"name": "get", "arguments": json.dumps({"city": city}, separators=(",", ":"))},
        }
        for c, city in (("c1", "Oslo"), ("c2", "Rome"))
    ]
    assert without_nulls(request.chat_body()) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}], "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ],
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "seed": 3,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": None}},
        "tools": [{"type": "function", "function": {"name": "get", "description": "d", "parameters": SCHEMA}}],
        "tool_choice": {"type": "function", "function": {"name": "get"}},
        "parallel_tool_calls": False,
        "user": "u",
        "logprobs": False,
    }


@pytest.mark.parametrize(
    "no_effect",
    [
        {"include": ["reasoning.encrypted_content"]},
        {"reasoning": {"effort": None, "summary": None}},
        {"truncation": "disabled", "background": False, "top_logprobs": 0},
    ],
)
def test_unsupported_fields_with_values_without_effect_are_accepted(no_effect: dict[str, Any]) -> None:
    validate(ResponsesRequest, {"model": "m", "input": "a", **no_effect})
