"""server/api/chat_translation.py: errors of a translated request have its endpoint's shape and field names."""

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from server.api.chat_translation import stream
from server.api.formats.ollama import OllamaChatReply
from server.api.routes.ollama import LINES
from server.generation.choice import Delta
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/v1/messages", {"model": MODEL}, 400, "invalid_request_error"),
        ("/v1/messages", {"model": "no", "messages": HELLO, "max_tokens": 1}, 404, "not_found_error"),
        ("/v1/messages/count_tokens", {"model": "no", "messages": HELLO}, 404, "not_found_error"),
        ("/v1/messages/nothing", {}, 404, "not_found_error"),
    ],
)
async def test_errors_of_messages_have_anthropics_shape(
    path: str, body: dict[str, Any], status: int, kind: str
) -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        response = await client.post(path, json=body)
        assert response.status_code == status
        assert response.json()["type"] == "error"
        assert set(response.json()["error"]) == {"type", "message"}
        assert response.json()["error"]["type"] == kind


BAD_SCHEMA = {"type": "object", "properties": {"x": {"type": "no type"}}}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        (
            "/v1/responses",
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": BAD_SCHEMA}}},
            "text.format",
        ),
        (
            "/v1/responses",
            {"tools": [{"type": "function", "name": "f", "parameters": BAD_SCHEMA}], "tool_choice": "required"},
            "tools[0].parameters",
        ),
        ("/v1/responses", {"tools": [{"type": "function", "name": "no name"}]}, "tools[0].name"),
        (
            "/v1/responses",
            {"instructions": "x", "input": [{"type": "function_call", "call_id": "x", "name": "f", "arguments": "{}"}]},
            "input",
        ),
        (
            "/v1/responses",
            {
                "tools": [
                    {"type": "web_search"},
                    {
                        "type": "namespace",
                        "name": "n",
                        "tools": [
                            {"type": "custom", "name": "good"},
                            {"type": "function", "name": "f", "parameters": BAD_SCHEMA},
                        ],
                    },
                ],
                "tool_choice": "required",
            },
            "tools[1].tools[1].parameters",
        ),
        (
            "/v1/messages",
            {"output_config": {"format": {"type": "json_schema", "schema": BAD_SCHEMA}}},
            "output_config.format",
        ),
        (
            "/v1/messages",
            {
                "tools": [{"type": "bash_20250124", "name": "bash"}, {"name": "f", "input_schema": BAD_SCHEMA}],
                "tool_choice": {"type": "any"},
            },
            "tools[1].input_schema",
        ),
        (
            "/v1/messages",
            {"tools": [{"name": "f", "input_schema": BAD_SCHEMA}], "tool_choice": {"type": "any"}},
            "tools[0].input_schema",
        ),
        (
            "/v1/messages",
            {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool"}},
            "tool_choice.name",
        ),
        (
            "/v1/messages",
            {"messages": [{"role": "assistant", "content": "a"}], "tools": [{"name": "f", "input_schema": {}}]},
            "tools",
        ),
    ],
)
async def test_an_error_of_the_chat_names_a_field_of_the_endpoint(path: str, body: dict[str, Any], named: str) -> None:
    base = {"input": "a"} if path == "/v1/responses" else {"messages": HELLO, "max_tokens": 1}
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        response = await client.post(path, json={"model": MODEL, **base, **body})
    error = response.json()["error"]
    assert response.status_code == 400
    assert f"'{named}'" in error["message"] and error.get("param", named) == named


@pytest.mark.anyio
async def test_a_prompt_that_is_too_long_is_named_by_the_endpoints_field() -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        too_long = {"model": MODEL, "input": "word " * 500}
        error = (await client.post("/v1/responses", json=too_long)).json()["error"]
        assert (error["param"], error["code"]) == ("input", "context_length_exceeded")


@pytest.mark.anyio
async def test_a_call_that_is_sent_whole_is_no_silence() -> None:
    """Its arguments arrive every 4 seconds: each third one comes 10 seconds or more after the last line."""
    now_s = 0.0

    async def deltas(idle_s: float) -> AsyncGenerator[list[Delta], None]:
        nonlocal now_s
        for _ in range(7):
            now_s += 4.0
            yield [Delta(0)]

    def chunks(delta: Delta) -> list[Any]:
        call = {"function": {"name": "f", "arguments": ""}} | ({"id": "a"} if now_s == 4.0 else {})
        return [({"delta": {"tool_calls": [call]}}, {})]

    def usage() -> dict[str, int]:
        return {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8}

    sent: list[tuple[float, bytes]] = []

    async def send(message: Any) -> None:
        if message.get("body"):
            sent.append((now_s, message["body"]))

    turn: Any = SimpleNamespace(
        generation=SimpleNamespace(deltas=deltas, usage=usage, final_usage=usage),
        reply_format=SimpleNamespace(chunks=chunks),
        add_to_headers=dict,
    )
    response = stream(
        turn, OllamaChatReply(MODEL, 0.0), {}, LINES, lambda event, _: json.dumps(event).encode(), lambda: now_s
    )
    await response({"type": "http"}, asyncio.Event().wait, send)  # type: ignore[arg-type]  # the client never leaves
    assert [moment for moment, _ in sent] == [12.0, 24.0, 28.0]
    first, _, last = (body.splitlines() for _, body in sent)
    assert json.loads(first[0])["message"] == {"role": "assistant", "content": ""} and len(last) == 2


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/api/chat"])
async def test_numbers_of_a_reply_hold_memory_until_they_are_sent_and_are_refused_beyond_it(path: str) -> None:
    engine = FakeEngine(saying("fine"), held=True)
    state = state_around(engine)
    turns = {"input": "Hello"} if path == "/v1/responses" else {"messages": HELLO}
    limit = {"/v1/messages": "max_tokens", "/v1/responses": "max_output_tokens"}.get(path, "num_predict")
    limits = {limit: 10} if path != "/api/chat" else {"options": {limit: 10}}
    body = {"model": MODEL, **turns, **limits, "expert_usage": True, "stream": False}
    async with client_of(state) as client:
        first = asyncio.create_task(client.post(path, json=body))
        await engine.until(lambda: bool(engine.submitted))
        num_bytes = state.reply_memory.used_bytes
        state.reply_memory.resize(num_bytes)
        second = await client.post(path, json=body)
        while engine.step():
            pass
        assert (await first).status_code == 200
    assert num_bytes and second.status_code == 429
    assert state.reply_memory.used_bytes == 0
