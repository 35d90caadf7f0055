"""server/api/formats/anthropic_messages.py: events and full replies agree."""

from typing import Any

import pytest

from server.api.formats.anthropic_messages import MessagesReply
from tests.support.chat_chunks import FULL_CHOICE, TEXT_THEN_CALLS, events_of


def test_a_messages_stream_builds_the_full_reply() -> None:
    reply, full = MessagesReply("msg_1", "m"), MessagesReply("msg_1", "m")
    events = events_of(reply, TEXT_THEN_CALLS)
    events_of(full, [FULL_CHOICE])
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in events[1:-2]:
        assert event["index"] == len(blocks) - is_open
        assert is_open == (event["type"] != "content_block_start")
        if event["type"] == "content_block_start":
            blocks.append({**event["content_block"], "json": ""})
            is_open = True
        elif event["type"] == "content_block_stop":
            is_open = False
        else:
            delta = event["delta"]
            name = "text" if delta["type"] == "text_delta" else "json"
            blocks[-1][name] += delta["text"] if name == "text" else delta["partial_json"]
    assert [(b["type"], b.get("text"), b["json"], b.get("id")) for b in blocks] == [
        ("text", "Let me", "", None),
        ("tool_use", None, '{"x":1}', "a"),
        ("tool_use", None, "", "b"),
    ]
    assert [event["type"] for event in (events[0], *events[-2:])] == ["message_start", "message_delta", "message_stop"]
    assert events[0]["message"]["usage"]["output_tokens"] == 0
    assert events[0]["message"]["content"] == []
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert reply.message == full.message
    assert [block.get("input") for block in reply.message["content"]] == [None, {"x": 1}, {}]
    assert reply.message["usage"]["input_tokens"] + reply.message["usage"]["cache_read_input_tokens"] == 9


@pytest.mark.parametrize("arguments", ['{"x": "y', "", '{"x": 1e999}', r'{"x": "\ud800"}'])
def test_a_call_whose_arguments_are_no_json_has_an_empty_input(arguments: str) -> None:
    reply = MessagesReply("msg_1", "m")
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    events = events_of(reply, [{"delta": {"tool_calls": [call]}}, {"delta": {}, "finish_reason": "length"}])
    assert [block["input"] for block in reply.message["content"]] == [{}]
    assert reply.message["stop_reason"] == "max_tokens"
    sent = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(sent) == arguments


@pytest.mark.parametrize(
    ("finish_reason", "stop_reason", "expected"),
    [
        ("stop", None, ("end_turn", None)),
        ("stop", 7, ("end_turn", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("length", None, ("max_tokens", None)),
    ],
)
def test_messages_have_anthropics_stop_reason(
    finish_reason: str, stop_reason: object, expected: tuple[str, str | None]
) -> None:
    reply = MessagesReply("msg_1", "m")
    events_of(
        reply, [{"delta": {"content": "a"}}, {"delta": {}, "finish_reason": finish_reason, "stop_reason": stop_reason}]
    )
    assert (reply.message["stop_reason"], reply.message["stop_sequence"]) == expected
