"""server/api/request_body.py: large bodies do not block the event loop, and ignored fields are named."""

import threading
from typing import Any

import pytest

from server.api import request_body
from server.api.openapi.document import REQUEST_MODELS
from server.api.request_body import IGNORED_PARAMS_HEADER, unknown_params
from server.errors import CONTEXT_LENGTH_EXCEEDED
from server.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    MessagesRequest,
    ResponsesRequest,
    TokenizeRequest,
    validate,
)
from server.schemas.validation import MAX_UNKNOWN_FIELDS, RequestModel
from server.strict_json import JsonValue, parse_object
from tests.support.servers.fake_engine import MAX_MODEL_LEN, FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around

pytestmark = pytest.mark.anyio

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
        (
            ChatCompletionRequest,
            {"messages": [HELLO], "tools": [{"type": "function", "function": FUNCTION, "cache_control": {}}]},
            ["tools[].cache_control"],
        ),
        (
            CompletionRequest,
            {"prompt": "a", "stream": True, "stream_options": {"include_obfuscation": False, "zoo": 1}},
            ["stream_options.zoo"],
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


def test_the_number_of_named_fields_is_limited() -> None:
    body = {"model": "m", "messages": [{**HELLO, **{f"x{i}": 1 for i in range(100)}}]}
    assert len(unknown_params(validate(ChatCompletionRequest, body), body)) == MAX_UNKNOWN_FIELDS


async def test_an_ignored_field_is_named_and_with_strict_params_rejected() -> None:
    state = state_around(FakeEngine(saying("a")))
    result = {"type": "tool_result", "tool_use_id": "t", "content": "no", "is_error": True}
    turns = [
        HELLO,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
        {"role": "user", "content": [result]},
    ]
    body = {"model": MODEL, "max_tokens": 1, "messages": turns}
    async with client_of(state) as client:
        accepted = await client.post("/v1/messages", json=body)
        state.strict_params = True
        rejected = await client.post("/v1/messages", json=body)
    assert (accepted.status_code, accepted.headers["x-smoe-ignored-params"]) == (200, "messages[].content[].is_error")
    assert rejected.status_code == 400


ADDED_BY_ROUTERS = {
    "no_stop_trim": False,
    "return_hidden_states": False,
    "separate_reasoning": True,
    "stream_reasoning": True,
    "include_reasoning": None,
}


OTHERS = {
    "/v1/completions": {"prompt": "a"},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"max_tokens": 1, "messages": [HELLO]},
    "/v1/messages/count_tokens": {"messages": [HELLO]},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
    "/v1/embeddings": {"input": "a"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/v1/score": {"text_1": "a", "text_2": "b"},
    "/api/chat": {"messages": [HELLO]},
    "/api/generate": {"prompt": "a", "stream": False},
    "/api/embed": {"input": "a"},
    "/api/embeddings": {"prompt": "a"},
    "/api/show": {},
}


async def test_what_routers_add_to_a_body_passes_strict_params() -> None:
    state = state_around(FakeEngine(saying("a")))
    state.strict_params = state.embeddings = True
    async with client_of(state) as client:
        chat = await client.post("/v1/chat/completions", json={"messages": [HELLO], **ADDED_BY_ROUTERS})
        replies = [chat] + [await client.post(path, json={**body, **ADDED_BY_ROUTERS}) for path, body in OTHERS.items()]
    assert [reply.status_code for reply in replies] == [200] * len(replies)
    assert not any(IGNORED_PARAMS_HEADER in reply.headers for reply in replies)


def test_what_routers_add_is_known_to_every_endpoint() -> None:
    for model in REQUEST_MODELS:
        assert all(model.is_idle(name, value) for name, value in ADDED_BY_ROUTERS.items()), model


@pytest.mark.parametrize("extra", [{"no_stop_trim": True}, {"return_hidden_states": True}, {"stream_reasoning": 0}])
async def test_a_routers_field_that_asks_for_something_is_named_and_with_strict_params_rejected(
    extra: dict[str, Any],
) -> None:
    state = state_around(FakeEngine(saying("a")))
    async with client_of(state) as client:
        accepted = await client.post("/v1/completions", json={"prompt": "a", **extra})
        state.strict_params = True
        rejected = await client.post("/v1/completions", json={"prompt": "a", **extra})
    assert accepted.headers[IGNORED_PARAMS_HEADER] == next(iter(extra))
    assert (rejected.status_code, rejected.json()["error"]["param"]) == (400, next(iter(extra)))


@pytest.mark.parametrize(("num_ids", "in_thread"), [(1, False), (300_000, True)])
async def test_a_large_body_is_parsed_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, num_ids: int, in_thread: bool
) -> None:
    """300,000 small integers fit a megabyte."""
    parsers: list[threading.Thread] = []

    def recorded(body: bytes) -> dict[str, JsonValue]:
        parsers.append(threading.current_thread())
        return parse_object(body)

    monkeypatch.setattr(request_body, "parse_object", recorded)
    async with client_of(state_around(FakeEngine(saying("x")))) as client:
        body = {"model": MODEL, "prompt": "a", "allowed_token_ids": [5] * num_ids}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
    [parser] = parsers
    assert (parser is not threading.current_thread()) == in_thread


async def test_an_error_in_a_large_body_is_the_same_400() -> None:
    async with client_of(state_around(FakeEngine(saying("x")))) as client:
        reply = await client.post("/v1/completions", json={"model": MODEL, "prompt": "a", "stop": ["a"] * 200_000})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "array_above_max_length")


@pytest.mark.parametrize(
    ("url", "field", "more"),
    [
        ("/v1/chat/completions", "messages", {}),
        ("/tokenize", "messages", {}),
        ("/v1/messages", "messages", {"max_tokens": 1}),
        ("/v1/responses", "input", {}),
    ],
)
async def test_more_turns_than_the_context_has_tokens_are_refused_before_they_are_validated(
    monkeypatch: pytest.MonkeyPatch, url: str, field: str, more: dict[str, Any]
) -> None:
    """To validate 10,000 turns and to render them takes ten times as long as to parse them."""
    validated: list[int] = []

    def noted(model: type[RequestModel], fields: dict[str, Any]) -> RequestModel:
        validated.append(len(fields[field]))
        return validate(model, fields)

    monkeypatch.setattr(request_body, "validate", noted)
    turns = [{"role": ("user", "assistant")[i % 2], "content": "a"} for i in range(MAX_MODEL_LEN + 1)]
    async with client_of(state_around(FakeEngine(saying("x")))) as client:
        for num_turns in (MAX_MODEL_LEN + 1, MAX_MODEL_LEN - 1):
            reply = await client.post(url, json={"model": MODEL, field: turns[:num_turns], **more})
            error = reply.json()["error"] if reply.status_code != 200 else {}
            if num_turns > MAX_MODEL_LEN:
                assert reply.status_code == 400 and str(num_turns) in error["message"]
                assert error.get("code", CONTEXT_LENGTH_EXCEEDED) == CONTEXT_LENGTH_EXCEEDED
    assert validated[:1] == [MAX_MODEL_LEN - 1]


@pytest.mark.parametrize(
    ("url", "field", "more"),
    [
        ("/v1/chat/completions", "messages", {"truncate_prompt_tokens": 8}),
        ("/v1/responses", "input", {"truncation": "auto"}),
    ],
)
async def test_a_conversation_that_may_be_cut_has_any_number_of_turns(
    url: str, field: str, more: dict[str, Any]
) -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": "a"} for i in range(MAX_MODEL_LEN + 1)]
    async with client_of(state_around(FakeEngine(saying("x")))) as client:
        assert (await client.post(url, json={"model": MODEL, field: turns, **more})).status_code == 200
