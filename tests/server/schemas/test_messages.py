"""server/schemas/messages_api/request.py: the chat that a Messages request becomes."""

from collections.abc import Mapping
from typing import Any

from server.schemas import MessagesRequest, validate

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def without_nulls(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body without its null members, which count as absent."""
    return {name: value for name, value in body.items() if value is not None and name != "stream"}


def test_a_messages_request_becomes_the_expected_chat() -> None:
    request = validate(
        MessagesRequest,
        {
            "model": "m",
            "max_tokens": 7,
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": "Weather?"},
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "t1", "name": "get", "input": {"city": "Oslo"}}],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "And?"},
                        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
                    ],
                },
                {"role": "assistant", "content": "It"},
            ],
            "stop_sequences": ["."],
            "top_k": 5,
            "tools": [{"name": "get", "input_schema": SCHEMA}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "metadata": {"user_id": "u"},
        },
    )
    call = {"id": "t1", "type": "function", "function": {"name": "get", "arguments": '{"city":"Oslo"}'}}
    assert without_nulls(request.chat_body()) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "t1", "content": "rain"},
            {"role": "user", "content": [{"type": "text", "text": "And?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "It"}]},
        ],
        "continue_final_message": True,
        "max_tokens": 7,
        "stop": ["."],
        "top_k": 5,
        "tools": [{"type": "function", "function": {"name": "get", "parameters": SCHEMA}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "user": "u",
    }
