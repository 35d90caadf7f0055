"""server/api/formats/openai_responses.py: events and full replies agree."""

from typing import Any

import orjson
import pytest

from server.api.formats.json_pieces import joined
from server.api.formats.openai_responses import ResponsesReply
from server.schemas import ResponsesRequest, validate
from tests.support.chat_chunks import FULL_CHOICE, TEXT_THEN_CALLS, events_of


def new_response() -> ResponsesReply:
    return ResponsesReply("resp_1", 5, validate(ResponsesRequest, {"model": "m", "input": "a"}), "m")


def test_a_responses_stream_builds_the_full_reply() -> None:
    reply, full = new_response(), new_response()
    events = events_of(reply, TEXT_THEN_CALLS)
    events_of(full, [FULL_CHOICE])
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
    seen = [(item["type"], item["text"] or item.get("arguments"), item.get("call_id")) for item in items]
    assert seen == [("message", "Let me", None), ("function_call", '{"x":1}', "a"), ("function_call", "", "b")]
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"] == reply.response == full.response
    assert reply.response["output"][0]["content"][0]["text"] == "Let me"
    assert [item["status"] for item in reply.response["output"]] == ["completed"] * 3
    assert reply.response["usage"]["input_tokens_details"] == {"cached_tokens": 5, "cache_write_tokens": 0}


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


def test_a_stream_has_the_log_probabilities_of_the_full_reply_wherever_the_end_token_comes() -> None:
    """With the text before it, as behind drafts, or alone."""
    a, b, end = ({"token": token, "logprob": -1.0} for token in ("a", "b", "</s>"))
    last = {"delta": {}, "finish_reason": "stop"}
    alone = [
        {"delta": {"content": "a"}, "logprobs": {"content": [a]}},
        {"delta": {"content": "b"}, "logprobs": {"content": [b]}},
        {**last, "logprobs": {"content": [end]}},
    ]
    with_text = [{"delta": {"content": "ab"}, "logprobs": {"content": [a, b, end]}}, last]
    full = [{"message": {"content": "ab"}, "logprobs": {"content": [a, b, end]}, "finish_reason": "stop"}]
    for choices in (alone, with_text, full):
        reply = new_response()
        deltas = [event for event in events_of(reply, choices) if event["type"] == "response.output_text.delta"]
        sent = [orjson.loads(orjson.dumps(delta["logprobs"], default=joined)) for delta in deltas]
        assert [entry for entries in sent for entry in entries] == [a, b, end]
        kept = reply.response["output"][0]["content"][0]["logprobs"]
        assert orjson.loads(orjson.dumps(kept, default=joined)) == [a, b, end]
    call = {"delta": {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}]}}
    reply = new_response()
    events_of(reply, [call, {**last, "logprobs": {"content": [end]}}])
    assert [item["type"] for item in reply.response["output"]] == ["function_call"]


def test_a_response_that_was_cut_is_incomplete() -> None:
    reply = new_response()
    events = events_of(reply, [{"delta": {"content": "a"}}, {"delta": {}, "finish_reason": "length"}])
    assert events[-1]["type"] == "response.incomplete"
    assert reply.response["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a\\n\\u00e9 b', "a\n\u00e9 b"),
        ('{"input":"a\\ud83d\\ude00\\ud83d', "a\U0001f600"),
        ('{"input": "a\\u00', "a"),
        ('{"input": "a\\', "a"),
        ('{"inp', ""),
        ('{"input": "a\\"}"}', 'a"}'),
    ],
)
def test_the_input_of_a_custom_tool_that_was_cut_is_its_text_so_far(arguments: str, text: str) -> None:
    body = {"model": "m", "input": "a", "tools": [{"type": "custom", "name": "k"}]}
    reply = ResponsesReply("resp_1", 5, validate(ResponsesRequest, body), "m")
    call = {"index": 0, "id": "1", "function": {"name": "k", "arguments": arguments}}
    events = events_of(reply, [{"delta": {"tool_calls": [call]}}, {"delta": {}, "finish_reason": "length"}])
    [item] = reply.response["output"]
    assert item["input"] == text
    assert [event["delta"] for event in events if event["type"].endswith("input.delta")] == [text]


def test_tools_and_format_are_repeated_as_they_were_sent_without_copies_of_their_schemas() -> None:
    schema = {"type": "object", "properties": {"x": {"default": None, "enum": [1, None]}}}
    function = {"type": "function", "name": "f", "parameters": schema, "strict": True}
    custom = {"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "regex", "definition": "a+"}}
    tools = [function, custom, {"type": "namespace", "name": "n", "tools": [function, custom]}]
    tools += [{"type": "web_search"}, {"type": "mcp", "server_label": "l", "server_url": "u", "headers": {"a": "b"}}]
    format_ = {"type": "json_schema", "name": "s", "schema": schema}
    body = {"model": "m", "input": "a", "tools": tools, "text": {"format": format_}}
    request = validate(ResponsesRequest, body)
    response = ResponsesReply("resp_1", 5, request, "m").response
    assert response["tools"] == tools and response["text"] == {"format": format_}
    assert response["tools"][0]["parameters"] is request.tools[0].parameters  # type: ignore[union-attr]
    assert request.text and request.text.format
    assert response["text"]["format"]["schema"] is request.text.format.json_schema
