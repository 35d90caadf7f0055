"""The choices of a chat's chunks, the same choice in one piece, and the events of a reply made from them."""

import json
from typing import Any

from server.api.formats.json_pieces import in_pieces
from server.generation.generation import Usage

USAGE: Usage = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 5},
}

TEXT_THEN_CALLS: list[dict[str, Any]] = [
    {"delta": {"role": "assistant", "content": ""}, "finish_reason": None},
    {"delta": {"content": "Let "}, "finish_reason": None},
    {"delta": {"content": "me"}, "finish_reason": None},
    {
        "delta": {
            "tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]
        }
    },
    {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}]}},
    {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}},
    {
        "delta": {
            "tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}]
        }
    },
    {"delta": {}, "finish_reason": "tool_calls", "stop_reason": None},
]

FULL_CHOICE: dict[str, Any] = {
    "message": {
        "role": "assistant",
        "content": "Let me",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
        ],
    },
    "finish_reason": "tool_calls",
    "stop_reason": None,
}


def events_of(reply: Any, choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events as a reader receives them: each is rendered when it is sent."""
    sent = [_rendered(event) for event in reply.begin(USAGE)]
    for choice in choices:
        sent += [_rendered(event) for event in reply.chunk(choice)]
    return [json.loads(event) for event in [*sent, *map(_rendered, reply.end(USAGE))]]


def _rendered(event: dict[str, Any]) -> bytes:
    return b"".join(in_pieces(event))
