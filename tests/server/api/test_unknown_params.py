"""server.api.request_body.py: what a request asks for in vain is named, wherever in it that stands."""

from typing import Any

import pytest

from server.api.request_body import unknown_params
from server.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    MessagesRequest,
    ResponsesRequest,
    TokenizeRequest,
    validate,
)
from server.schemas.validation import MAX_UNKNOWN_FIELDS, RequestModel
from tests.support.fake_engine import FakeEngine
from tests.support.serving import MODEL, client_of, saying, state_around

HELLO: dict[str, Any] = {"role": "user", "content": "Hello"}
CACHED = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
FUNCTION = {"name": "f", "parameters": {"type": "object", "colour": 1}}
CALLS = {
    "role": "assistant",
    "content": None,
    "refusal": None,
    "tool_calls": [{"id": "1", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "b"}


@pytest.mark.parametrize(
    ("model", "body", "named"),
    [
        (CompletionRequest, {"prompt": [[1, 2], [3]], "temprature": 0}, ["temprature"]),
        (ChatCompletionRequest, {"messages": [HELLO]}, []),
        (
            ChatCompletionRequest,
            {"messages": [{**HELLO, "name": "bob"}, {**HELLO, "name": "eve"}], "zoo": 1, "a\n": 1},
            ["?", "zoo", "messages[].name"],
        ),
        (ChatCompletionRequest, {"messages": [{**HELLO, "na\nme": 1}]}, ["?"]),
        (
            ChatCompletionRequest,
            {"messages": [{"role": "user", "content": [CACHED]}]},
            ["messages[].content[].cache_control"],
        ),
        (ChatCompletionRequest, {"messages": [HELLO, CALLS, RESULT]}, ["messages[].tool_calls[].index"]),
        (
            ChatCompletionRequest,
            {"messages": [HELLO], "tools": [{"type": "function", "function": {**FUNCTION, "examples": []}}]},
            ["tools[].function.examples"],
        ),
        (ResponsesRequest, {"input": [{**HELLO, "id": "x"}, {**HELLO, "id": None}]}, ["input[].id"]),
        (
            ResponsesRequest,
            {"input": "a", "text": {"verbosity": "low", "format": {"type": "text"}}},
            ["text.verbosity"],
        ),
        (
            MessagesRequest,
            {"messages": [{"role": "user", "content": [CACHED]}], "system": [CACHED], "max_tokens": 1},
            ["messages[].content[].cache_control", "system[].cache_control"],
        ),
        (TokenizeRequest, {"messages": [{**HELLO, "name": "bob"}]}, ["messages[].name"]),
    ],
    ids=str,
)
def test_unknown_fields_are_named_at_the_top_and_inside(
    model: type[RequestModel], body: dict[str, Any], named: list[str]
) -> None:
    body = {"model": "m", **body}
    assert unknown_params(validate(model, body), body) == named


def test_no_more_are_named_than_a_header_takes() -> None:
    body = {"model": "m", "messages": [{**HELLO, **{f"x{i}": 1 for i in range(100)}}]}
    assert len(unknown_params(validate(ChatCompletionRequest, body), body)) == MAX_UNKNOWN_FIELDS


@pytest.mark.anyio
async def test_a_message_that_loses_something_says_so_and_is_refused_where_that_is_asked_for() -> None:
    state = state_around(FakeEngine(saying("a")))
    result = {"type": "tool_result", "tool_use_id": "t", "content": "no", "is_error": True}
    turns = [
        HELLO,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
        {"role": "user", "content": [result]},
    ]
    body = {"model": MODEL, "max_tokens": 1, "messages": turns}
    async with client_of(state) as client:
        taken = await client.post("/v1/messages", json=body)
        state.strict_params = True
        refused = await client.post("/v1/messages", json=body)
    assert (taken.status_code, taken.headers["x-smoe-ignored-params"]) == (200, "messages[].content[].is_error")
    assert refused.status_code == 400
