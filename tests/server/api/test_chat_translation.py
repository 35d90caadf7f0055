"""Responses and Messages: what they ask of chat, and what they make of its reply, streamed and whole."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from server.api.formats.anthropic_messages import MessagesReply
from server.api.formats.openai_responses import ResponsesReply
from server.errors import ApiError
from server.generation.generation import Usage
from server.schemas import CountTokensRequest, MessagesRequest, ResponsesRequest, validate
from server.schemas.validation import RequestModel

USAGE: Usage = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 5},
}
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def given(body: Mapping[str, Any]) -> dict[str, Any]:
    """A chat's body as the chat sees it: null is absent."""
    return {name: value for name, value in body.items() if value is not None and name != "stream"}


def test_a_responses_request_is_the_chat_that_a_reader_expects() -> None:
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
    assert given(request.chat_body()) == {
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
    }


def test_a_messages_request_is_the_chat_that_a_reader_expects() -> None:
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
    assert given(request.chat_body()) == {
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


@pytest.mark.parametrize(
    "asked_in_vain",
    [
        {"include": ["reasoning.encrypted_content"]},
        {"reasoning": {"effort": None, "summary": None}},
        {"truncation": "disabled", "background": False, "top_logprobs": 0},
    ],
)
def test_what_asks_for_nothing_that_is_not_there_anyway_passes(asked_in_vain: dict[str, Any]) -> None:
    validate(ResponsesRequest, {"model": "m", "input": "a", **asked_in_vain})


@pytest.mark.parametrize(
    ("model", "change", "param", "code"),
    [
        (ResponsesRequest, {"input": []}, "input", "empty_array"),
        (ResponsesRequest, {"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        (ResponsesRequest, {"input": [{"role": "root", "content": "a"}]}, "input[0].role", "invalid_value"),
        (ResponsesRequest, {"input": [{"type": "reasoning"}]}, "input[0].type", "unsupported_value"),
        (ResponsesRequest, {"input": [{"content": "a"}]}, "input[0].type", "missing_required_parameter"),
        (ResponsesRequest, {"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        (ResponsesRequest, {"include": ["message.output_text.logprobs"]}, "include", "unsupported_parameter"),
        (ResponsesRequest, {"reasoning": {"effort": "high"}}, "reasoning", "unsupported_parameter"),
        (ResponsesRequest, {"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
        (ResponsesRequest, {"tool_choice": "must"}, "tool_choice", "invalid_value"),
        (MessagesRequest, {"max_tokens": None}, "max_tokens", "missing_required_parameter"),
        (MessagesRequest, {"messages": [{"role": "system", "content": "a"}]}, "messages[0].role", "invalid_value"),
        (
            MessagesRequest,
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0].type",
            "unsupported_value",
        ),
        (
            MessagesRequest,
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        (MessagesRequest, {"thinking": {"type": "enabled"}}, "thinking", "unsupported_parameter"),
        (CountTokensRequest, {"messages": "a"}, "messages", "invalid_type"),
    ],
    ids=str,
)
def test_a_bad_request_is_refused_under_this_endpoints_names(
    model: type[RequestModel], change: dict[str, Any], param: str, code: str
) -> None:
    body = (
        {"model": "m", "input": "a"}
        if model is ResponsesRequest
        else {"model": "m", "messages": HELLO, "max_tokens": 1}
    )
    with pytest.raises(ApiError) as refusal:
        validate(model, {**body, **change})
    assert (refusal.value.param, refusal.value.code) == (param, code)


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
WHOLE_CHOICE: dict[str, Any] = {
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
    """As a reader of the stream has them: each rendered when it is sent."""
    sent = [json.dumps(event) for event in reply.begin(USAGE)]
    for choice in choices:
        sent += [json.dumps(event) for event in reply.chunk(choice)]
    return [json.loads(event) for event in [*sent, *map(json.dumps, reply.end(USAGE))]]


def new_response() -> ResponsesReply:
    return ResponsesReply("resp_1", 5, validate(ResponsesRequest, {"model": "m", "input": "a"}))


def test_a_responses_stream_builds_what_the_whole_reply_is() -> None:
    reply, whole = new_response(), new_response()
    events = events_of(reply, TEXT_THEN_CALLS)
    events_of(whole, [WHOLE_CHOICE])
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    items: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "response.output_item.added":
            assert event["output_index"] == len(items)
            items.append({**event["item"], "text": ""})
        elif event["type"] == "response.output_text.delta":
            items[event["output_index"]]["text"] += event["delta"]
        elif event["type"] == "response.function_call_arguments.delta":
            items[event["output_index"]]["arguments"] += event["delta"]
    told = [(item["type"], item["text"] or item.get("arguments"), item.get("call_id")) for item in items]
    assert told == [("message", "Let me", None), ("function_call", '{"x":1}', "a"), ("function_call", "", "b")]
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"] == reply.response == whole.response
    assert reply.response["output"][0]["content"][0]["text"] == "Let me"
    assert [item["status"] for item in reply.response["output"]] == ["completed"] * 3
    assert reply.response["usage"]["input_tokens_details"] == {"cached_tokens": 5}


def test_every_item_of_a_responses_stream_is_opened_and_closed_in_order() -> None:
    names = [event["type"].removeprefix("response.") for event in events_of(new_response(), TEXT_THEN_CALLS)]
    text = ["content_part.added", "output_text.delta", "output_text.delta", "output_text.done", "content_part.done"]
    deltas = ["function_call_arguments.delta"] * 2
    assert names == [
        "created",
        "in_progress",
        *["output_item.added", *text, "output_item.done"],
        *["output_item.added", *deltas, "function_call_arguments.done", "output_item.done"],
        *["output_item.added", "function_call_arguments.done", "output_item.done"],
        "completed",
    ]


def test_a_response_that_was_cut_is_incomplete() -> None:
    reply = new_response()
    events = events_of(reply, [{"delta": {"content": "a"}}, {"delta": {}, "finish_reason": "length"}])
    assert events[-1]["type"] == "response.incomplete"
    assert reply.response["incomplete_details"] == {"reason": "max_output_tokens"}


def test_a_messages_stream_builds_what_the_whole_reply_is() -> None:
    reply, whole = MessagesReply("msg_1", "m"), MessagesReply("msg_1", "m")
    events = events_of(reply, TEXT_THEN_CALLS)
    events_of(whole, [WHOLE_CHOICE])
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
    assert events[0]["message"]["content"] == []
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert reply.message == whole.message
    assert [block.get("input") for block in reply.message["content"]] == [None, {"x": 1}, {}]
    assert reply.message["usage"]["input_tokens"] + reply.message["usage"]["cache_read_input_tokens"] == 9


@pytest.mark.parametrize("arguments", ['{"x": "y', "", '{"x": 1e999}', r'{"x": "\ud800"}'])
def test_a_call_whose_arguments_are_no_json_has_an_empty_input(arguments: str) -> None:
    reply = MessagesReply("msg_1", "m")
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    events = events_of(reply, [{"delta": {"tool_calls": [call]}}, {"delta": {}, "finish_reason": "length"}])
    assert [block["input"] for block in reply.message["content"]] == [{}]
    assert reply.message["stop_reason"] == "max_tokens"
    told = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(told) == arguments


@pytest.mark.parametrize(
    ("finish_reason", "stop_reason", "told"),
    [
        ("stop", None, ("end_turn", None)),
        ("stop", 7, ("end_turn", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("length", None, ("max_tokens", None)),
    ],
)
def test_messages_tell_why_they_end(finish_reason: str, stop_reason: object, told: tuple[str, str | None]) -> None:
    reply = MessagesReply("msg_1", "m")
    events_of(
        reply, [{"delta": {"content": "a"}}, {"delta": {}, "finish_reason": finish_reason, "stop_reason": stop_reason}]
    )
    assert (reply.message["stop_reason"], reply.message["stop_sequence"]) == told
