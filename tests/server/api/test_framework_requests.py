"""POST /v1/chat/completions and /v1/completions with what agent frameworks and evaluation programs send."""

import json
import re
from dataclasses import replace
from typing import Any

import httpx
import pytest

from engine.types import Request
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, events, saying, state_around, tokenizer

pytestmark = pytest.mark.anyio

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "How is it in Paris?"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CUT = '{"city": "Ba'  # as this server writes it when max_tokens ends a call


async def post(
    body: dict[str, Any], path: str = CHAT, says: str = "fine", **state_fields: Any
) -> tuple[httpx.Response, list[Request]]:
    engine = FakeEngine(saying(says))
    state = replace(state_around(engine), **{"tool_emulation": True, **state_fields})
    base: dict[str, Any] = {"messages": [USER]} if path == CHAT else {"prompt": "a"}
    async with client_of(state) as client:
        return await client.post(path, json={**base, **body}), engine.submitted


def called(arguments: object, *more: dict[str, Any]) -> dict[str, Any]:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, *more], "tools": [TOOL]}


RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": "error: invalid arguments"}


async def prompt_of(body: dict[str, Any]) -> str:
    reply, [request] = await post(body)
    assert reply.status_code == 200, reply.text
    return tokenizer().decode(request.prompt_token_ids)


@pytest.mark.parametrize("arguments", [CUT, "[1]", "null", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": "\\ud800"}'])
async def test_a_call_with_a_result_whose_arguments_are_no_object_has_none(arguments: str) -> None:
    reply, [request] = await post(called(arguments, RESULT))
    assert reply.status_code == 200, reply.text
    assert "emptied-arguments" in reply.headers["x-smoe-repaired"]
    assert '"name": "weather", "arguments": {}' in tokenizer().decode(request.prompt_token_ids)


async def test_a_call_that_was_cut_and_has_no_result_becomes_text() -> None:
    reply, [request] = await post(called(CUT, {"role": "user", "content": "Go on"}))
    assert reply.status_code == 200, reply.text
    assert "call-as-text" in reply.headers["x-smoe-repaired"]
    assert 'weather {"city": "Ba' in tokenizer().decode(request.prompt_token_ids)


async def test_a_whole_call_still_needs_its_result() -> None:
    reply, submitted = await post(called('{"city": "Bath"}', USER))
    assert (reply.status_code, submitted) == (400, [])


async def test_a_cut_call_is_refused_by_a_server_that_repairs_nothing() -> None:
    reply, submitted = await post(called(CUT, RESULT), strict_roles=True)
    assert (reply.status_code, submitted) == (400, [])
    assert "emptied-arguments" in reply.json()["error"]["message"]


async def test_arguments_may_be_an_object_as_mistral_has_them() -> None:
    as_text, as_object = [await prompt_of(called(a, RESULT)) for a in ('{"city": "Bath"}', {"city": "Bath"})]
    assert as_text == as_object and "Bath" in as_text


async def test_mistrals_prefix_continues_the_last_message() -> None:
    answer = {"role": "assistant", "content": "It is"}
    _, [by_prefix] = await post({"messages": [USER, {**answer, "prefix": True}]})
    _, [by_field] = await post({"messages": [USER, answer], "continue_final_message": True})
    assert by_prefix.prompt_token_ids == by_field.prompt_token_ids
    for messages in ([{**USER, "prefix": True}], [USER, {**answer, "prefix": True}, USER]):
        assert (await post({"messages": messages}))[0].status_code == 400


async def test_a_forced_call_beside_a_response_format_is_made() -> None:
    says = '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Bath"}}]'
    format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        reply, _ = await post({"tools": [TOOL], "tool_choice": choice, "response_format": format_}, says=says)
        assert reply.json()["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_full_context_is_reported_in_the_words_that_frameworks_know(path: str) -> None:
    long = {"messages": [{**USER, "content": "word " * 500}], "prompt": "word " * 500}
    for fields in (long, {"max_tokens": 256}):
        reply, _ = await post(fields, path)
        message = reply.json()["error"]["message"]
        assert re.match(r"This model's maximum context length is 256 tokens\. However, you", message)
    assert reply.json()["error"]["code"] == "context_length_exceeded"


async def test_evaluations_may_send_many_stop_strings_and_ask_for_many_choices() -> None:
    reply, submitted = await post({"stop": [f"stop{i}" for i in range(32)], "n": 128}, COMPLETIONS)
    assert reply.status_code == 200 and len(submitted) == 128
    reply, submitted = await post({"n": 128}, COMPLETIONS, max_num_queued=100)
    assert (reply.status_code, reply.json()["error"]["param"], submitted) == (400, "n", [])


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_the_model_may_be_left_out_and_stream_may_be_null(path: str) -> None:
    reply, _ = await post({"stream": None}, path)
    assert reply.status_code == 200 and reply.json()["model"] == MODEL


async def test_usage_that_is_declined_is_not_sent() -> None:
    options = {"include_usage": False, "continuous_usage_stats": True}
    reply, _ = await post({"stream": True, "stream_options": options})
    assert all("usage" not in event for event in events(reply.text))


@pytest.mark.parametrize("says", ["Hello there", "a \U00010348 \u00e9", " two"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_texts_of_chat_logprobs_join_to_the_content(says: str, streamed: bool) -> None:
    reply, _ = await post({"logprobs": True, "top_logprobs": 1, "stream": streamed}, says=says)
    if streamed:
        choices = [event["choices"][0] for event in events(reply.text)]
        content = "".join(choice["delta"].get("content", "") for choice in choices)
        entries = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    else:
        [choice] = reply.json()["choices"]
        content, entries = choice["message"]["content"], choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == content
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == content
    assert (entries[-1]["token"], entries[-1]["bytes"]) == ("", [])  # the end token


async def test_a_schema_of_any_object_may_be_bare() -> None:
    bare = {"type": "json_object", "schema": SCHEMA}
    wrapped = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    grammars = [(await post({"response_format": form}))[1][0].grammar for form in (bare, wrapped)]
    assert grammars[0] == grammars[1] and "city" in json.dumps(grammars[0])
