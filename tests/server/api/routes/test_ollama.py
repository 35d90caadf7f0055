"""Ollama's API: /api/chat, /api/generate, /api/embed, /api/embeddings, /api/tags, /api/ps, /api/show, /api/version."""

import asyncio
import json
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx
import msgspec
import pytest

from server.api.formats.ollama import OllamaChatReply
from tests.support.servers.fake_engine import READY, FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around
from tests.support.tool_calling import calling, v3_state

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": HELLO}
PROMPT: dict[str, Any] = {"model": MODEL, "prompt": "Hello"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Current weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
COUNTS = ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration")


async def post(path: str, body: dict[str, Any], *, text: str = "one two") -> tuple[httpx.Response, FakeEngine]:
    engine = FakeEngine(saying(text))
    async with client_of(state_around(engine)) as client:
        return await client.post(path, json=body), engine


def lines(reply: httpx.Response) -> list[dict[str, Any]]:
    assert reply.headers["content-type"] == "application/x-ndjson" and reply.text.endswith("\n")
    return [json.loads(line) for line in reply.text.splitlines()]


def assert_final(record: dict[str, Any], engine: FakeEngine) -> None:
    assert (record["done"], record["done_reason"]) == (True, "stop")
    assert all(type(record[name]) is int and record[name] >= 0 for name in COUNTS)
    assert record["prompt_eval_count"] == len(engine.submitted[0].prompt_token_ids)
    assert record["total_duration"] == record["prompt_eval_duration"] + record["eval_duration"]
    assert datetime.fromisoformat(record["created_at"]).utcoffset() is not None


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/api/chat", {}, 200),  # as the commands in Ollama's documentation
        ("/api/chat", {"origin": "http://smoe"}, 415),  # as a form of a page
        ("/api/chat", {"origin": "null"}, 403),  # of a file or a frame in a sandbox
        ("/api/chat", {"referer": "http://smoe/"}, 415),
        ("/api/chat", {"sec-fetch-site": "same-site"}, 415),
        ("/api/chat", {"content-type": "text/plain"}, 415),
        ("/v1/chat/completions", {}, 415),
    ],
)
async def test_json_that_curl_calls_a_form_is_read_unless_a_browser_sends_it(
    path: str, headers: dict[str, str], status: int
) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    async with client_of(state_around(FakeEngine(saying("one two")))) as client:
        reply = await client.post(path, content=json.dumps(CHAT), headers=form | headers)
    assert reply.status_code == status


async def test_a_chat_is_streamed_by_default_and_its_lines_have_the_text_of_the_full_reply() -> None:
    reply, engine = await post("/api/chat", CHAT)
    *parts, final = lines(reply)
    assert all((part["model"], part["done"], part["message"]["role"]) == (MODEL, False, "assistant") for part in parts)
    assert "".join(part["message"]["content"] for part in parts) == "one two"
    assert final["message"] == {"role": "assistant", "content": ""}
    assert_final(final, engine)
    reply, engine = await post("/api/chat", {**CHAT, "stream": False})
    assert reply.json()["message"] == {"role": "assistant", "content": "one two"}
    assert_final(reply.json(), engine)
    assert reply.json()["eval_count"] == final["eval_count"] == len(saying("one two")(engine.submitted[0]))


async def test_a_prompt_is_answered_like_a_chat_of_one_message() -> None:
    reply, engine = await post("/api/generate", {**PROMPT, "system": "Be brief."})
    *parts, final = lines(reply)
    assert "".join(part["response"] for part in parts) == "one two" and final["response"] == ""
    assert_final(final, engine)
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    _, chat = await post("/api/chat", {**CHAT, "messages": messages})
    assert engine.submitted[0].prompt_token_ids == chat.submitted[0].prompt_token_ids
    reply, _ = await post("/api/generate", {**PROMPT, "stream": False})
    assert reply.json()["response"] == "one two"


async def test_models_are_not_deleted() -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        reply = await client.request("DELETE", "/api/delete", json={"model": MODEL})
    assert reply.status_code == 404 and "delete the model's files" in reply.json()["error"]


async def test_a_raw_prompt_is_continued_as_it_is_and_as_far_as_the_context_has_room() -> None:
    reply, engine = await post("/api/generate", {**PROMPT, "raw": True}, text="one two")
    *parts, final = lines(reply)
    assert "".join(part["response"] for part in parts) == " one two"
    assert_final(final, engine)
    _, usual = await post("/v1/completions", PROMPT)
    assert engine.submitted[0].prompt_token_ids == usual.submitted[0].prompt_token_ids
    assert engine.submitted[0].params.max_tokens == READY.max_model_len - len(usual.submitted[0].prompt_token_ids)
    whole, limited = await post(
        "/api/generate", {**PROMPT, "raw": True, "stream": False, "options": {"num_predict": 1}}
    )
    assert whole.json()["done_reason"] == "length" and limited.submitted[0].params.max_tokens == 1
    empty, _ = await post("/api/generate", {**PROMPT, "prompt": "", "raw": True})
    assert empty.json()["done_reason"] == "load"


async def test_options_reach_the_engine() -> None:
    options = {"num_predict": 3, "temperature": 0.5, "top_p": 0.6, "top_k": 5, "min_p": 0.1, "seed": 7}
    penalties = {"repeat_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3}
    for path, body in (("/api/chat", CHAT), ("/api/generate", PROMPT)):
        reply, engine = await post(path, {**body, "options": {**options, **penalties, "num_ctx": 8192.0}})
        params = engine.submitted[0].params
        assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (3, 0.5, 0.6, 5)
        assert (params.min_p, params.seed, params.repetition_penalty) == (0.1, 7, 1.1)
        assert (params.presence_penalty, params.frequency_penalty) == (0.2, 0.3)
        assert "x-smoe-ignored-params" not in reply.headers


@pytest.mark.parametrize("stop", ["two", ["x", "two"]])
async def test_a_stop_text_ends_the_answer(stop: object) -> None:
    reply, _ = await post("/api/chat", {**CHAT, "stream": False, "options": {"stop": stop}})
    assert (reply.json()["message"]["content"], reply.json()["done_reason"]) == ("one ", "stop")


async def test_a_limit_is_the_reason_and_minus_one_is_none() -> None:
    reply, _ = await post("/api/chat", {**CHAT, "options": {"num_predict": 1}})
    assert lines(reply)[-1]["done_reason"] == "length"
    for number in (-1, -2, 0, 99999):  # the last is more than the context has room for
        _, engine = await post("/api/chat", {**CHAT, "options": {"num_predict": number}})
        [request] = engine.submitted
        assert request.params.max_tokens == READY.max_model_len - len(request.prompt_token_ids)


@pytest.mark.parametrize(("given", "has_grammar"), [("json", True), (SCHEMA, True), ("", False), (None, False)])
async def test_a_format_is_a_grammar(given: object, has_grammar: bool) -> None:
    for path, body in (("/api/chat", CHAT), ("/api/generate", PROMPT)):
        reply, engine = await post(path, {**body, "format": given}, text='{"a":1}')
        assert reply.status_code == 200, reply.text
        assert (engine.submitted[0].grammar is not None) == has_grammar


async def test_fields_without_effect_are_accepted_and_others_named() -> None:
    body = {**CHAT, "keep_alive": "5m", "think": False, "options": {"num_ctx": 4096, "mirostat": 1}, "strange": 1}
    reply, _ = await post("/api/chat", body)
    assert reply.headers["x-smoe-ignored-params"] == "strange, options.mirostat"


async def test_a_prompt_that_is_not_to_be_cut_is_as_usual() -> None:
    as_usual = {"truncate": False, "shift": False}
    for path, body in (("/api/chat", CHAT), ("/api/generate", PROMPT)):
        reply, _ = await post(path, {**body, **as_usual})
        assert reply.status_code == 200 and "x-smoe-ignored-params" not in reply.headers
    reply, _ = await post("/api/generate", {**PROMPT, "truncate": True, "shift": True})
    assert reply.headers["x-smoe-ignored-params"] == "shift, truncate"


async def test_tools_are_called_and_their_results_find_their_calls() -> None:
    engine = FakeEngine(calling('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]'))
    first = {"model": MODEL, "messages": HELLO, "tools": [WEATHER]}
    async with client_of(v3_state(engine)) as client:
        streamed = lines(await client.post("/api/chat", json=first))
        whole = (await client.post("/api/chat", json={**first, "stream": False})).json()["message"]
        calls = [part["message"]["tool_calls"] for part in streamed if "tool_calls" in part["message"]]
        assert calls == [whole["tool_calls"]] and streamed[-1]["done"] is True
        [call] = whole["tool_calls"]
        assert (call["function"]["name"], call["function"]["arguments"]) == ("weather", {"city": "Rome"})
        answered = [*HELLO, {**whole}, {"role": "tool", "content": "11 degrees", "tool_name": "weather"}]
        reply = await client.post("/api/chat", json={**first, "messages": answered})
        assert reply.status_code == 200, reply.text
        alone = [*HELLO, {"role": "tool", "content": "11 degrees", "tool_name": "weather"}]
        refused = await client.post("/api/chat", json={**first, "messages": alone})
        alone[1]["tool_call_id"] = "a"
        unknown = await client.post("/api/chat", json={**first, "messages": alone})
    assert refused.status_code == unknown.status_code == 400
    assert "'messages[1]' is a result" in refused.json()["error"]
    assert "'messages[1].tool_call_id' must be the id of a call" in unknown.json()["error"]


@pytest.mark.parametrize(("arguments", "reason", "num_calls"), [
    ('{"city": "Ro', "length", 1), ("", "length", 1), ('{"city": "Rome"}', "length", 2), ("", "tool_calls", 2),
])  # fmt: skip
async def test_a_call_that_a_limit_cuts_off_is_left_out(arguments: str, reason: str, num_calls: int) -> None:
    """Clients run the calls that they get."""
    reply = OllamaChatReply(MODEL, 0.0)
    for call_id, text in (("a", '{"city": "Oslo"}'), ("b", arguments)):
        call = {"index": 0, "id": call_id, "function": {"name": "weather", "arguments": text}}
        reply.chunk({"delta": {"tool_calls": [call]}})
    reply.chunk({"delta": {}, "finish_reason": reason})
    reply.end({"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2})
    calls = reply.record["message"]["tool_calls"]
    assert len(calls) == num_calls and calls[0]["function"]["arguments"] == {"city": "Oslo"}


async def test_a_request_without_text_only_loads() -> None:
    for path, body in (("/api/chat", {"model": MODEL}), ("/api/generate", {"model": MODEL, "keep_alive": 0})):
        reply, engine = await post(path, body)
        assert (reply.json()["done"], reply.json()["done_reason"]) == (True, "load") and not engine.submitted


async def test_the_tag_that_clients_add_is_dropped() -> None:
    for path, body in (("/api/chat", CHAT), ("/api/generate", PROMPT), ("/api/show", {})):
        reply, _ = await post(path, {**body, "model": f"{MODEL}:latest"})
        assert reply.status_code == 200, reply.text


async def test_the_tag_of_a_served_name_may_be_left_out() -> None:
    state = replace(state_around(FakeEngine(saying("one two"))), model_names=("mine:latest",))
    async with client_of(state) as client:
        replies = [
            await client.post("/api/chat", json={**CHAT, "model": name}) for name in ("mine", "mine:latest", "m")
        ]
    assert [reply.status_code for reply in replies] == [200, 200, 404]


@pytest.mark.parametrize(
    ("path", "body", "status", "part"),
    [
        ("/api/chat", {**CHAT, "model": "other"}, 404, MODEL),
        ("/api/show", {"model": "other"}, 404, MODEL),
        ("/api/chat", {**CHAT, "options": {"temperature": 9}}, 400, "'options.temperature' must be at most 2"),
        ("/api/chat", {**CHAT, "options": {"num_predict": -3}}, 400, "options.num_predict"),
        ("/api/chat", {**CHAT, "options": {"max_tokens": 3}}, 400, "Send 'options.num_predict' instead"),
        ("/api/chat", {**CHAT, "max_tokens": 3}, 400, "Send 'options.num_predict' instead"),
        ("/api/chat", {**CHAT, "extra_body": {"options": {"stop": "x"}}}, 400, "Send 'options.stop' instead"),
        ("/api/chat", {**CHAT, "response_format": {"type": "json_object"}}, 400, "Send 'format' instead"),
        ("/api/chat", {**CHAT, "tool_choice": "required"}, 400, "This endpoint has no such constraint"),
        ("/api/chat", {**CHAT, "function_call": {"name": "f"}}, 400, "'function_call' is not supported"),
        ("/api/chat", {**CHAT, "format": {"type": "zebra"}}, 400, "'format"),
        ("/api/chat", {"model": MODEL, "messages": [{**HELLO[0], "images": ["aGk="]}]}, 400, "messages[0].images"),
        ("/api/chat", {**CHAT, "tools": [WEATHER]}, 400, "not trained to call tools: send none"),
        ("/api/generate", {**PROMPT, "raw": True, "system": "a"}, 400, "'system' must be empty with 'raw'"),
        ("/api/generate", {**PROMPT, "raw": True, "prompt": "word " * 9999}, 400, "maximum context length"),
        ("/api/generate", {**PROMPT, "suffix": "a"}, 400, "'suffix' is not supported here. No model that is served"),
        ("/api/generate", {**PROMPT, "template": "{{ .Prompt }}"}, 400, "'template' is not supported"),
        ("/api/generate", {**PROMPT, "prompt": "word " * 9999}, 400, "maximum context length"),
        ("/api/embed", {"model": MODEL, "input": "a"}, 400, "--embeddings"),
        ("/api/embeddings", {"model": MODEL, "prompt": "a"}, 400, "--embeddings"),
        ("/api/embeddings", {"model": "other", "prompt": ""}, 404, MODEL),
        ("/api/pull", {"model": MODEL}, 404, "This part of Ollama's API is not served. The server downloads nothing"),
        ("/api/push", {"model": MODEL}, 404, "uploads nothing"),
        ("/api/create", {"model": MODEL}, 404, "--chat-template, --quantization or --lora"),
        ("/api/copy", {"source": MODEL}, 404, "--served-model-name"),
    ],
)
async def test_errors_are_a_text(path: str, body: dict[str, Any], status: int, part: str) -> None:
    reply, engine = await post(path, body)
    assert reply.status_code == status and not engine.submitted
    assert reply.json().keys() == {"error"} and part in reply.json()["error"], reply.text


async def test_an_error_in_a_stream_is_its_last_line() -> None:
    engine = FakeEngine(saying("one two"), held=True)

    async def fail() -> None:
        await engine.until(lambda: bool(engine.submitted))
        engine.step()
        await asyncio.sleep(0)
        engine.fail("row")

    async with client_of(state_around(engine)) as client:
        failing = asyncio.create_task(fail())
        reply = await client.post("/api/chat", json=CHAT)
        await failing
    first, *_, last = lines(reply)
    assert first["done"] is False and last.keys() == {"error"}


async def test_silence_is_a_line_without_text() -> None:
    """A client that parses each line has no use for comments or blank lines."""
    reply = OllamaChatReply(MODEL, 0.0)
    [record] = reply.idle()
    assert record["message"]["content"] == "" and record["done"] is False


async def test_the_durations_of_prompt_and_answer_are_the_total() -> None:
    moments = iter([1.4e-9, 2.8e-9])  # in nanoseconds 1.4 and 1.4, which are rounded to 1 and 1, and their sum to 3
    reply = OllamaChatReply(MODEL, 0.0, lambda: next(moments))
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    reply.begin(usage)
    reply.end(usage)
    assert [reply.record[name] for name in ("total_duration", "prompt_eval_duration", "eval_duration")] == [3, 1, 2]


async def test_texts_are_embedded() -> None:
    engine = FakeEngine(saying("a"))
    state = state_around(engine)
    state.embeddings = True
    async with client_of(state) as client:
        reply = (await client.post("/api/embed", json={"model": MODEL, "input": ["one", "two"]})).json()
        single = (await client.post("/api/embed", json={"model": MODEL, "input": "one", "dimensions": 2})).json()
        usual = (await client.post("/v1/embeddings", json={"model": MODEL, "input": ["one", "two"]})).json()
        long = await client.post("/api/embed", json={"model": MODEL, "input": "word " * 5000})
        refused = await client.post("/api/embed", json={"model": MODEL, "input": "word " * 5000, "truncate": False})
    assert reply["embeddings"] == [entry["embedding"] for entry in usual["data"]]
    assert reply["prompt_eval_count"] == usual["usage"]["prompt_tokens"] and reply["total_duration"] >= 0
    assert [len(vector) for vector in single["embeddings"]] == [2]
    assert (long.status_code, refused.status_code) == (200, 400)


async def test_one_text_is_embedded_for_older_clients() -> None:
    state = state_around(FakeEngine(saying("a")))
    state.embeddings = True
    body = {"model": f"{MODEL}:latest", "prompt": "one", "options": {"num_ctx": 9}, "keep_alive": "5m"}
    async with client_of(state) as client:
        reply = await client.post("/api/embeddings", json=body)
        newer = (await client.post("/api/embed", json={"input": "one"})).json()
        long = await client.post("/api/embeddings", json={**body, "prompt": "word " * 5000})
        empty = await client.post("/api/embeddings", json={**body, "prompt": ""})
    assert reply.json() == {"embedding": newer["embeddings"][0]}
    assert "x-smoe-ignored-params" not in reply.headers
    assert long.status_code == 200 and empty.json() == {"embedding": []}


async def test_what_is_served_is_listed_and_described() -> None:
    engine = FakeEngine(saying("a"))
    engine.ready = msgspec.structs.replace(READY, num_parameters=46_700_000_000, adapters={"sql": "0123"})
    async with client_of(state_around(engine)) as client:
        version = (await client.get("/api/version")).json()["version"]
        tags, loaded = [(await client.get(path)).json()["models"] for path in ("/api/tags", "/api/ps")]
        shown = (await client.post("/api/show", json={"name": MODEL})).json()
        engine.ready = None
        listed = (await client.get("/api/tags")).json()["models"]
        assert (await client.get("/api/ps")).json() == {"models": []}
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)  # which VS Code asks for
    assert [entry["name"] for entry in tags] == [entry["model"] for entry in loaded] == [MODEL, "alias", "sql"]
    assert [entry["name"] for entry in listed] == [MODEL, "alias"]
    assert tags[0]["details"]["parameter_size"] == "46.7B" and tags[0]["size"] == READY.weight_bytes
    assert tags[0]["digest"] == tags[1]["digest"] != tags[2]["digest"]
    family = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{family}.context_length"] == READY.max_model_len
    assert shown["capabilities"] == ["completion"] and shown["template"]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085"])
async def test_a_line_is_one_line_for_clients_that_know_more_ends_of_lines(character: str) -> None:
    """Python's str.splitlines(), by which httpx and Ollama's package read a stream, knows eight."""
    reply, _ = await post("/api/generate", PROMPT, text=f"one{character}two")
    records = [json.loads(line) for line in reply.text.splitlines()]
    assert "".join(record["response"] for record in records) == f"one{character}two"
