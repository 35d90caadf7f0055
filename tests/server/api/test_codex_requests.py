"""POST /v1/responses with what Codex and other clients of OpenAI's Responses send."""

import json
from typing import Any

import httpx
import msgspec
import openai
import pytest

from engine.types import Request
from tests.support.servers.fake_engine import READY, FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around, tokenizer
from tests.support.tool_calling import allows

pytestmark = pytest.mark.anyio

URL = "/v1/responses"
USER = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "List it."}]}
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
SHELL = {"type": "function", "name": "shell", "description": "Run it.", "strict": False, "parameters": SCHEMA}
FILES = {"type": "namespace", "name": "mcp__files__", "description": "Files", "tools": [{**SHELL, "name": "list"}]}
PATCH = {"type": "custom", "name": "patch", "description": "Change files."}
LIST_CALL = '[TOOL_CALLS] [{"name": "mcp__files__list", "arguments": {"path": "a"}}]'
PATCH_CALL = '[TOOL_CALLS] [{"name": "patch", "arguments": {"input": "one\\ntwo"}}]'


async def post(body: dict[str, Any], says: str = "fine") -> tuple[httpx.Response, list[Request]]:
    engine = FakeEngine(saying(says))
    engine.ready = msgspec.structs.replace(READY, max_model_len=65536, max_prompt_tokens=65536)
    state = state_around(engine)
    state.tool_emulation = True
    async with client_of(state) as client:
        return await client.post(URL, json={"model": MODEL, "input": [USER], **body}), engine.submitted


def ignored(reply: httpx.Response) -> list[str]:
    return reply.headers.get("x-smoe-ignored-params", "").split(", ")


def event_types(reply: httpx.Response) -> list[str]:
    return [line.removeprefix("event: ") for line in reply.text.split("\n") if line.startswith("event: ")]


def prompt_of(request: Request) -> str:
    return tokenizer().decode(request.prompt_token_ids)


async def test_a_first_turn_of_codex_is_answered() -> None:
    body = {
        "instructions": "You help with code.",
        "input": [{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Rules"}]}, USER],
        "tools": [SHELL, FILES, PATCH, {"type": "web_search", "external_web_access": False}, {"type": "local_shell"}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199",
        "text": {"verbosity": "low"},
        "client_metadata": {"x-codex-installation-id": "1"},
    }
    reply, [request] = await post(body)
    assert reply.status_code == 200, reply.text
    assert event_types(reply)[-1] == "response.completed"
    assert {"reasoning", "text.verbosity", "tools[].local_shell", "tools[].web_search"} <= {*ignored(reply)}
    prompt = prompt_of(request)
    assert "You help with code." in prompt and "Rules" in prompt and "mcp__files__list" in prompt
    assert "web_search" not in prompt


async def test_reasoning_of_earlier_turns_is_left_out_of_the_prompt() -> None:
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Here"}]}
    reasoning = {"type": "reasoning", "summary": [], "encrypted_content": "eHg=", "id": "rs_1"}
    reply, [with_reasoning] = await post({"input": [USER, reasoning, answer, USER]})
    assert "input[].encrypted_content" in ignored(reply)
    _, [without] = await post({"input": [USER, answer, USER]})
    assert with_reasoning.prompt_token_ids == without.prompt_token_ids


async def test_a_call_has_the_namespace_and_name_of_its_tool() -> None:
    reply, _ = await post({"tools": [SHELL, FILES]}, LIST_CALL)
    response = openai.types.responses.Response.model_validate(reply.json())
    [call] = response.output
    assert isinstance(call, openai.types.responses.ResponseFunctionToolCall)
    assert (call.name, call.namespace, json.loads(call.arguments)) == ("list", "mcp__files__", {"path": "a"})
    history = [USER, call.model_dump(exclude_none=True), {**result(call.call_id), "output": "b"}]
    _, [request] = await post({"input": history, "tools": [SHELL, FILES]})
    assert '"name": "mcp__files__list", "arguments": {"path": "a"}' in prompt_of(request)


def result(call_id: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id}


async def test_a_custom_tool_is_called_with_a_text() -> None:
    reply, _ = await post({"tools": [PATCH]}, PATCH_CALL)
    [call] = reply.json()["output"]
    assert (call["type"], call["name"], call["input"]) == ("custom_tool_call", "patch", "one\ntwo")
    history = [USER, call, {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "done"}]
    reply, [request] = await post({"input": history, "tools": [PATCH]})
    assert reply.status_code == 200, reply.text
    assert '"arguments": {"input": "one\\ntwo"}' in prompt_of(request) and "done" in prompt_of(request)


async def test_a_stream_has_the_events_of_a_custom_tools_input() -> None:
    reply, _ = await post({"tools": [PATCH], "stream": True}, PATCH_CALL)
    assert event_types(reply)[2:6] == [
        "response.output_item.added",
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        "response.output_item.done",
    ]
    assert '"delta":"one\\ntwo"' in reply.text


async def test_a_custom_tools_regular_expression_is_followed() -> None:
    form = {"type": "grammar", "syntax": "regex", "definition": "[0-9]+"}
    _, [request] = await post({"tools": [{**PATCH, "format": form}], "tool_choice": "required"})
    call = '[TOOL_CALLS] [{{"name": "patch", "arguments": {{"input": "{}"}}}}]'
    assert allows(request.grammar, call.format("12"), version=1)
    assert not allows(request.grammar, call.format("a12"), version=1)


async def test_a_choice_among_the_tools_is_followed() -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "shell"}]}
    reply, [request] = await post({"tools": [SHELL, PATCH], "tool_choice": choice})
    assert reply.json()["tool_choice"] == choice
    assert allows(request.grammar, '[TOOL_CALLS] [{"name": "shell", "arguments": {"path": "a"}}]', version=1)
    assert not allows(request.grammar, PATCH_CALL, version=1)
    _, [request] = await post({"tools": [SHELL, PATCH], "tool_choice": {"type": "custom", "name": "patch"}})
    assert allows(request.grammar, PATCH_CALL, version=1)


async def test_a_choice_of_nothing_but_tools_that_were_left_out_is_no_call_or_a_400() -> None:
    search = {"type": "web_search"}
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [search]}
    reply, [request] = await post({"tools": [SHELL, search], "tool_choice": choice})
    assert reply.status_code == 200 and request.grammar is None
    reply, submitted = await post({"tools": [SHELL, search], "tool_choice": {**choice, "mode": "required"}})
    assert (reply.status_code, submitted) == (400, [])
    assert (await post({"tools": [search], "tool_choice": "required"}))[0].status_code == 400


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "json_object"}},
        {"guided_json": SCHEMA},
        {"structured_outputs": {"regex": "a"}},
        {"max_tool_calls": 1},
    ],
    ids=str,
)
async def test_what_would_change_the_answer_is_refused_by_name(field: dict[str, Any]) -> None:
    reply, submitted = await post(field)
    assert (reply.status_code, submitted) == (400, [])
    assert reply.json()["error"]["param"] == next(iter(field))


async def test_logprobs_of_the_text_are_in_the_part_and_in_its_events() -> None:
    wanted = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part = (await post(wanted))[0].json()["output"][0]["content"][0]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"] == "fine"
    assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
    reply, _ = await post({**wanted, "stream": True})
    events = [json.loads(line.removeprefix("data: ")) for line in reply.text.split("\n") if line.startswith("data: ")]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(entry["token"] for event in deltas for entry in event["logprobs"]) == "fine"


async def test_truncation_drops_as_few_of_the_oldest_turns_as_possible() -> None:
    def turn(number: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": f"turn{number} " + "word " * 10_000}, {"role": "assistant", "content": "b"}]

    system = {"role": "system", "content": "Rules"}
    conversation = [system, *(item for number in range(9) for item in turn(number)), USER]
    refused, _ = await post({"input": conversation})
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    reply, [request] = await post({"input": conversation, "truncation": "auto"})
    assert reply.status_code == 200 and reply.json()["truncation"] == "auto"
    prompt = prompt_of(request)
    assert [f"turn{number}" in prompt for number in range(9)] == [False] * 3 + [True] * 6
    assert "Rules" in prompt and "List it." in prompt
    too_long = [{"role": "user", "content": "word " * 70_000}]
    assert (await post({"input": [USER, *too_long], "truncation": "auto"}))[0].status_code == 400
