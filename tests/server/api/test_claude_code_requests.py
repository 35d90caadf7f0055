"""POST /v1/messages with what Claude Code and other clients of Anthropic's API send."""

import json
from typing import Any

import httpx
import msgspec
import pytest

from engine.types import Request
from tests.support.servers.fake_engine import READY, FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around, tokenizer

pytestmark = pytest.mark.anyio

HELLO = {"role": "user", "content": "Hello"}
EPHEMERAL = {"type": "ephemeral"}
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"path": {"type": "string", "description": "A file"}},
    "required": ["path"],
}
READ = {"name": "Read", "description": "Read a file. " * 2000, "input_schema": SCHEMA}  # over 16 Ki characters
THINKING = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"path": "a"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "text", "is_error": False}


async def post(body: dict[str, Any], path: str = "/v1/messages") -> tuple[httpx.Response, list[Request]]:
    engine = FakeEngine(saying("fine"))
    engine.ready = msgspec.structs.replace(READY, max_model_len=65536, max_prompt_tokens=65536)
    state = state_around(engine)
    state.tool_emulation = True
    base = {"model": MODEL, "messages": [HELLO]} | ({"max_tokens": 9} if path == "/v1/messages" else {})
    async with client_of(state) as client:
        return await client.post(path + "?beta=true", json={**base, **body}), engine.submitted


def ignored(reply: httpx.Response) -> list[str]:
    return reply.headers.get("x-smoe-ignored-params", "").split(", ")


async def prompt_of(**body: Any) -> str:
    reply, [request] = await post(body)
    assert reply.status_code == 200, reply.text
    return tokenizer().decode(request.prompt_token_ids)


async def test_a_first_turn_of_claude_code_is_answered() -> None:
    body = {
        "max_tokens": 32000,
        "stream": True,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.1; cch=1a2b3;"},
            {"type": "text", "text": "You help with code.", "cache_control": EPHEMERAL},
        ],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello", "cache_control": EPHEMERAL}]}],
        "tools": [READ, {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}],
        "metadata": {"user_id": json.dumps({"device_id": "d" * 64, "session_id": "s" * 36})},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
    }
    reply, [request] = await post(body)
    assert reply.status_code == 200, reply.text
    assert reply.text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')
    assert {"context_management", "thinking", "output_config.effort", "tools[].web_search_20250305"} <= {
        *ignored(reply)
    }
    prompt = tokenizer().decode(request.prompt_token_ids)
    assert "You help with code." in prompt and "Read a file." in prompt
    assert "billing" not in prompt and "web_search" not in prompt


@pytest.mark.parametrize(
    "field",
    [
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"thinking": {"type": "adaptive", "display": "summarized"}},
        {"context_management": {"edits": []}},
        {"service_tier": "auto"},
        {"speed": "standard"},
        {"inference_geo": "us"},
        {"cache_control": EPHEMERAL},
        {"diagnostics": {"previous_message_id": None}},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_field_without_effect_here_is_ignored_and_named(field: dict[str, Any], path: str) -> None:
    reply, _ = await post(field, path)
    assert reply.status_code == 200, reply.text
    assert ignored(reply) == list(field)


async def test_thinking_of_earlier_turns_is_left_out_of_the_prompt() -> None:
    redacted = {"type": "redacted_thinking", "data": "eHg="}
    user = {"role": "user", "content": "And?"}
    with_thinking = [
        HELLO,
        {"role": "assistant", "content": [THINKING, redacted, {"type": "text", "text": "Hi"}]},
        user,
    ]
    reply, [request] = await post({"messages": with_thinking})
    assert {"messages[].content[].thinking", "messages[].content[].data"} <= {*ignored(reply)}
    assert tokenizer().decode(request.prompt_token_ids) == await prompt_of(
        messages=[HELLO, {"role": "assistant", "content": "Hi"}, user]
    )


async def test_a_turn_of_nothing_but_thinking_is_an_empty_turn() -> None:
    only = {"role": "assistant", "content": [THINKING]}
    assert (await post({"messages": [HELLO, only]}))[0].status_code == 200
    assert (await post({"messages": [HELLO, only, HELLO]}))[0].status_code == 200


async def test_thinking_before_a_call_keeps_the_call() -> None:
    turns = [
        HELLO,
        {"role": "assistant", "content": [THINKING, CALL]},
        {"role": "user", "content": [RESULT, {"type": "text", "text": "Go on"}]},
    ]
    prompt = await prompt_of(messages=turns, tools=[READ])
    assert '"name": "Read"' in prompt and "Go on" in prompt and "Hm." not in prompt


async def test_a_system_turn_between_others_reaches_the_prompt() -> None:
    turns = [HELLO, {"role": "assistant", "content": "Hi"}, {"role": "system", "content": "Be brief."}, HELLO]
    assert "Be brief." in await prompt_of(messages=turns)


async def test_the_billing_line_does_not_change_the_prompt() -> None:
    def system(line: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": line}, {"type": "text", "text": "Be brief."}]

    prompts = {await prompt_of(system=system(f"x-anthropic-billing-header: cch={i};")) for i in range(3)}
    assert prompts == {await prompt_of(system="Be brief.")}
    assert await prompt_of(system="x-anthropic-billing-header: a\nBe brief.") in prompts
    assert await prompt_of(system="x-anthropic-billing-header: a") == await prompt_of()


FORMAT = {"type": "json_schema", "schema": SCHEMA}


@pytest.mark.parametrize(
    "fields",
    [
        {"output_config": {"format": FORMAT}},
        {"output_format": FORMAT},  # the older name, which inspect-ai sends
        {"output_format": FORMAT, "output_config": {"format": FORMAT, "effort": "low"}},
    ],
)
async def test_a_format_of_the_output_becomes_a_grammar(fields: dict[str, Any]) -> None:
    reply, [request] = await post(fields)
    assert reply.status_code == 200 and request.grammar is not None
    assert "path" in request.grammar


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "json_object"}},
        {"mcp_servers": [{"type": "url", "url": "http://a", "name": "a"}]},
        {"container": "c"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_what_would_change_the_answer_is_refused_by_name(field: dict[str, Any], path: str) -> None:
    reply, submitted = await post(field, path)
    assert (reply.status_code, submitted) == (400, [])
    assert f"'{next(iter(field))}'" in reply.json()["error"]["message"]


async def test_a_choice_of_a_tool_that_was_left_out_is_refused() -> None:
    web = {"type": "web_search_20250305", "name": "web_search"}
    for choice in ({"type": "any"}, {"type": "tool", "name": "web_search"}):
        assert (await post({"tools": [web], "tool_choice": choice}))[0].status_code == 400


async def test_a_full_context_is_reported_in_the_words_that_clients_know() -> None:
    text = "word " * 70_000
    reply, _ = await post({"messages": [{"role": "user", "content": text}]})
    assert reply.json()["error"]["message"].startswith("prompt is too long: ")
    assert reply.json()["error"]["message"].endswith(" tokens > 65536 maximum")
    reply, _ = await post({"max_tokens": 65536})
    message = reply.json()["error"]["message"]
    assert message.startswith("input length and `max_tokens` exceed context limit: 9 + 65536 > 65536, decrease ")
