"""server/schemas/tools.py: tools, the choice among them, and calls with their results."""

from typing import Any

import pytest

from server.schemas import ChatCompletionRequest, validate
from tests.support.requests import CHAT, refusal

TOOL = {"type": "function", "function": {"name": "f"}}
OTHER = {"type": "function", "function": {"name": "g", "parameters": {"properties": {}}}}
USER = {"role": "user", "content": "x"}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "y"}


def calls(*ids: str, arguments: str = "") -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": i, "type": "function", "function": function} for i in ids]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL, OTHER, TOOL]}, "tools[2].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "h"}}}, "tool_choice"),
        ({"messages": [USER, calls("1")]}, "messages[1].tool_calls"),
        ({"messages": [USER, calls("1"), USER]}, "messages[1].tool_calls"),
        ({"messages": [USER, calls("1", "1"), RESULT]}, "messages[1].tool_calls"),
        ({"messages": [USER, RESULT]}, "messages[1].tool_call_id"),
        ({"messages": [USER, calls("1"), RESULT, RESULT]}, "messages[3].tool_call_id"),
    ],
    ids=str,
)
def test_tools_and_calls_that_do_not_fit_together_are_a_400(fields: dict[str, Any], param: str) -> None:
    assert refusal(ChatCompletionRequest, CHAT | fields) == (param, "invalid_value")


def test_calls_keep_their_ids_and_parsed_arguments() -> None:
    messages = [USER, calls("1", arguments='{"x": [1]}'), RESULT]
    request = validate(ChatCompletionRequest, CHAT | {"messages": messages, "tools": [TOOL], "tool_choice": "auto"})
    [call] = request.messages[1].calls
    assert (call.id, call.name, call.arguments) == ("1", "f", {"x": [1]})
    assert request.messages[2].call_id == "1"


def test_arguments_are_an_object_and_without_parameters_an_empty_one() -> None:
    request = validate(ChatCompletionRequest, CHAT | {"tools": [TOOL, OTHER]})
    first, second = (tool.function.schema_of_arguments() for tool in request.tools)
    assert first == {"type": "object", "additionalProperties": False}
    assert second == {"type": "object", "properties": {}, "additionalProperties": False}
