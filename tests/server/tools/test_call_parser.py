"""Calls of tools: read out of any split of an answer, told as OpenAI's clients add them up, refused where malformed."""

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import GrammarError
from engine.grammars.matcher import GrammarCompiler
from engine.messages import Ready
from engine.types import Request
from server.chat.template import ChatTemplate
from server.generation.sampling_params import GenerationDefaults
from server.generation.state import ServerState, TextFrontend
from server.tokenizer.tokenizer import Tokenizer
from server.tools.call_parser import ToolCallParser
from tests.support.fake_engine import EOS, READY, FakeEngine
from tests.support.mistral_tokenizers import v3_tokenizer
from tests.support.serving import MODEL, client_of, events, saying, state_around, tokenizer

pytestmark = pytest.mark.anyio

URL = "/v1/chat/completions"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ASK: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "How is it in Paris?"}],
    "tools": [WEATHER, CLOCK],
}
PARIS = {"city": 'Pa"ri\\s }]'}
ONE = f'[TOOL_CALLS] [{{"name": "weather", "arguments": {json.dumps(PARIS)}}}]'
SECOND = '{"name": "clock", "arguments": {}}'
TWO = f'[TOOL_CALLS] [{{"name": "weather", "arguments": {json.dumps(PARIS)}, "id": "abcdefghi"}}, {SECOND}]'
FIRST_BYTE_ID = {1: 3, 3: 771}  # of <0x00>, by the tokenizer's version


@cache
def v3() -> Tokenizer:
    """Mixtral-8x22B-Instruct's."""
    with tempfile.TemporaryDirectory() as folder:
        return v3_tokenizer(Path(folder))


def v3_state(engine: FakeEngine) -> ServerState:
    engine.ready = replace_vocab(32768)
    texts = TextFrontend(v3(), ChatTemplate(None, v3()), GenerationDefaults())
    return replace(state_around(engine), texts=texts)


def replace_vocab(vocab_size: int) -> Ready:
    return msgspec.structs.replace(READY, vocab_size=vocab_size, max_model_len=2048, max_prompt_tokens=2048)


def calling(text: str) -> Callable[[Request], Sequence[int]]:
    """A script that writes the text, [TOOL_CALLS] as its control token."""
    ids = [*v3().encode_with_specials(text), EOS]
    return lambda request: ids


async def answered(text: str, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]], Request]:
    """The whole reply, the stream's chunks, and what the engine was asked."""
    engine = FakeEngine(calling(text))
    async with client_of(v3_state(engine)) as client:
        whole = await client.post(URL, json={**ASK, **fields})
        streamed = await client.post(URL, json={**ASK, **fields, "stream": True})
    assert whole.status_code == 200, whole.text
    return whole.json(), events(streamed.text), engine.submitted[0]


def added_up(chunks: list[dict[str, Any]], index: int = 0) -> tuple[str, list[dict[str, Any]], str]:
    """Content, calls and finish reason of a choice, put together as clients do it."""
    content, calls, reason = "", [], ""
    for choice in (choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index):
        content += choice["delta"].get("content") or ""
        reason = choice["finish_reason"] or reason
        for part in choice["delta"].get("tool_calls", []):
            if part["index"] == len(calls):
                assert part.keys() == {"index", "id", "type", "function"}
                assert part["function"].keys() == {"name", "arguments"} and part["function"]["arguments"] == ""
                calls.append({"id": part["id"], "type": part["type"], "function": dict(part["function"])})
            else:
                assert part.keys() == {"index", "function"} and part["index"] == len(calls) - 1
                assert part["function"].keys() == {"arguments"}
                calls[-1]["function"]["arguments"] += part["function"]["arguments"]
    return content, calls, reason


def test_calls_are_read_alike_however_the_text_is_cut(scale: int) -> None:
    rng = random.Random(3)
    for text in [ONE, TWO, "[TOOL", "[TOOL_CALLX] []", "plain", "", *(TWO[:end] for end in range(0, len(TWO), 3))]:
        whole = read([text])
        for _ in range(20 * scale):
            cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 9)))
            pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            assert read(pieces) == whole, pieces


def read(pieces: list[str]) -> tuple[str, list[tuple[str, str]], bool]:
    reader = ToolCallParser()
    words, calls = "", []
    for piece in pieces:
        more, parts = reader.push(piece)
        words += more
        for part in parts:
            if part.name is not None:
                calls.append([part.name, ""])
            calls[part.index][1] += part.arguments
    return words + reader.finish(), [(name, arguments) for name, arguments in calls], reader.is_complete


def test_a_text_that_only_looks_like_calls_is_a_text() -> None:
    assert read(["[TOOL"]) == ("[TOOL", [], False)
    assert read(["see ", "[TOOL_CALLS] [...]"]) == ("see [TOOL_CALLS] [...]", [], False)


@pytest.mark.parametrize(("text", "names"), [(ONE, ["weather"]), (TWO, ["weather", "clock"])])
async def test_calls_are_told_whole_and_streamed(text: str, names: list[str]) -> None:
    body, chunks, _ = await answered(text)
    (choice,) = body["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    calls = choice["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == names
    assert json.loads(calls[0]["function"]["arguments"]) == PARIS
    assert all(call["type"] == "function" and len(call["id"]) == 9 and call["id"].isalnum() for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    content, streamed, reason = added_up(chunks)
    assert (content, reason) == ("", "tool_calls")
    assert [call["function"] for call in streamed] == [call["function"] for call in calls]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["delta"] == {}


async def test_an_answer_in_words_is_as_without_tools() -> None:
    body, chunks, _ = await answered("It is [fine] there.")
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "It is [fine] there.", "refusal": None}
    assert added_up(chunks) == ("It is [fine] there.", [], "stop")


async def test_calls_cut_off_by_a_limit_say_so() -> None:
    body, chunks, _ = await answered(ONE, max_tokens=24)
    assert body["choices"][0]["finish_reason"] == "length" == added_up(chunks)[2]
    arguments = body["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert json.dumps(PARIS).startswith(arguments) and added_up(chunks)[1][0]["function"]["arguments"] == arguments


async def test_every_choice_has_calls_and_ids_of_its_own() -> None:
    body, chunks, _ = await answered(ONE, n=3)
    ids = [choice["message"]["tool_calls"][0]["id"] for choice in body["choices"]]
    assert len(set(ids)) == 3
    assert all(added_up(chunks, index)[1][0]["function"]["name"] == "weather" for index in range(3))


async def test_token_ids_and_logprobs_are_all_told_beside_calls() -> None:
    body, chunks, _ = await answered(TWO, return_token_ids=True, logprobs=True)
    (choice,) = body["choices"]
    streamed = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [i for choice in streamed for i in choice["token_ids"]] == choice["token_ids"]
    entries = [entry for one in streamed if one["logprobs"] for entry in one["logprobs"]["content"]]
    assert entries == choice["logprobs"]["content"] and len(entries) == len(choice["token_ids"])


async def test_the_experts_of_all_tokens_are_told_beside_calls() -> None:
    body, chunks, _ = await answered(TWO, expert_routing=True)
    (choice,) = body["choices"]
    streamed = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [layers for one in streamed for layers in one["expert_routing"]] == choice["expert_routing"]
    assert len(choice["expert_routing"]) == body["usage"]["completion_tokens"] - 1


def allows(grammar: str | None, text: str, *, version: int = 3) -> bool:
    assert grammar is not None
    vocabulary = (v3() if version == 3 else tokenizer()).vocabulary()
    matcher = GrammarCompiler(vocabulary, len(vocabulary.tokens), (EOS,)).matcher(grammar)
    ids: list[int] = []
    if version == 3 and text.startswith("[TOOL_CALLS]"):
        marker = v3().special_token_id("[TOOL_CALLS]")
        ids, text = [marker] if marker is not None else [], text.removeprefix("[TOOL_CALLS]")
    ids += [FIRST_BYTE_ID[version] + byte for byte in text.encode()]
    try:
        mask = matcher.bitmask(ids, 0)
    except GrammarError:
        return False
    return bool(mask[EOS // 8] >> EOS % 8 & 1)


WORDS = "It is fine."
CLOCK_CALL = '[TOOL_CALLS] [{"name": "clock", "arguments": {}}]'
NAMED = {"type": "function", "function": {"name": "clock"}}


@pytest.mark.parametrize(
    ("fields", "allowed", "forbidden"),
    [
        ({}, [WORDS, ONE, TWO, CLOCK_CALL], []),
        ({"parallel_tool_calls": False}, [WORDS, ONE], [TWO]),
        ({"tool_choice": "required"}, [ONE, TWO, CLOCK_CALL], [WORDS, ""]),
        ({"tool_choice": NAMED}, [CLOCK_CALL], [WORDS, ONE, TWO]),
        ({"response_format": {"type": "json_object"}}, [ONE, '{"a":1}'], [WORDS]),
        ({"structured_outputs": {"choice": ["no", "yes"]}}, [ONE, "no", "yes"], [WORDS, "maybe"]),
    ],
    ids=str,
)
async def test_the_answer_can_be_what_the_choice_allows_and_nothing_else(
    fields: dict[str, Any], allowed: list[str], forbidden: list[str]
) -> None:
    _, _, request = await answered(ONE, **fields)
    assert [text for text in allowed if not allows(request.grammar, text)] == []
    wrong = ['[TOOL_CALLS] [{"name": "other", "arguments": {}}]', '[TOOL_CALLS] [{"name": "weather", "arguments": {}}]']
    assert [text for text in [*forbidden, *wrong, "[TOOL_CALLS] []"] if allows(request.grammar, text)] == []


async def test_no_choice_at_all_shows_the_model_no_tools() -> None:
    _, _, request = await answered(WORDS, tool_choice="none")
    _, _, without = await answered(WORDS, tools=[])
    assert request.grammar is None
    assert request.prompt_token_ids == without.prompt_token_ids


@pytest.mark.parametrize("choice", ["required", NAMED])
async def test_a_version_1_model_must_call_by_prompt_and_grammar(choice: object) -> None:
    engine = FakeEngine(saying(CLOCK_CALL))
    engine.ready = replace_vocab(32000)
    async with client_of(state_around(engine)) as client:
        answer = await client.post(URL, json={**ASK, "tool_choice": choice})
    (told,) = answer.json()["choices"]
    assert (told["finish_reason"], told["message"]["tool_calls"][0]["function"]["name"]) == ("tool_calls", "clock")
    (request,) = engine.submitted
    assert "These functions can be called" in tokenizer().decode(request.prompt_token_ids)
    assert allows(request.grammar, CLOCK_CALL, version=1)
    assert not allows(request.grammar, WORDS, version=1)


async def test_a_version_1_model_decides_only_where_that_was_switched_on() -> None:
    engine = FakeEngine(saying(CLOCK_CALL))
    engine.ready = replace_vocab(32000)
    async with client_of(state_around(engine)) as client:
        refused = await client.post(URL, json=ASK)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, "tool_choice", "unsupported_parameter")
    async with client_of(replace(state_around(engine), tool_emulation=True)) as client:
        answer = await client.post(URL, json=ASK)
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
    (request,) = engine.submitted
    assert allows(request.grammar, CLOCK_CALL, version=1) and allows(request.grammar, WORDS, version=1)
    assert not allows(request.grammar, "[TOOL_CALLS] no", version=1)


def tool(**function: Any) -> dict[str, Any]:
    return {"tools": [CLOCK, {"type": "function", "function": {"name": "f", **function}}]}


def turns(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}, *messages]}


def calls(arguments: str = "{}", **fields: Any) -> dict[str, Any]:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "clock", "arguments": arguments}, **fields}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": "1"}
PARAMETERS = "tools[1].function.parameters"
MALFORMED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": "clock"}, "tools", "invalid_type"),
    ({"tools": [{}]}, "tools[0].type", "missing_required_parameter"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    ({"tools": [{"type": "web"}]}, "tools[0].type", "invalid_value"),
    ({"tools": [CLOCK] * 2}, "tools[1].function.name", "invalid_value"),
    ({"tools": [CLOCK] * 10_000}, "tools", "array_above_max_length"),
    (tool(name="two words"), "tools[1].function.name", "invalid_value"),
    (tool(name="a" * 65), "tools[1].function.name", "invalid_value"),
    (tool(parameters={"type": "array"}), PARAMETERS, "invalid_value"),
    (tool(parameters={"properties": {"a": {"pattern": "["}}}), PARAMETERS, "invalid_value"),
    (tool(parameters={"properties": {"a": {"type": "obj"}}}), PARAMETERS, "invalid_value"),
    (tool(parameters={"properties": {f"p{i}": {} for i in range(2000)}}), PARAMETERS, "invalid_value"),
    (tool(parameters="{}"), PARAMETERS, "invalid_type"),
    ({"tool_choice": "some"}, "tool_choice", "invalid_value"),
    ({"tool_choice": {"type": "function"}}, "tool_choice", "invalid_value"),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice", "invalid_value"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tools": None, "tool_choice": NAMED}, "tool_choice", "invalid_value"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "invalid_type"),
    ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format", "invalid_value"),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, "structured_outputs.grammar", "invalid_value"),
    ({"tool_choice": "required", "ignore_eos": True}, "ignore_eos", "invalid_value"),
    (turns(calls("{"), RESULT), "messages[1].tool_calls[0].function.arguments", "invalid_value"),
    (turns(calls("[]"), RESULT), "messages[1].tool_calls[0].function.arguments", "invalid_value"),
    (turns(calls(id=""), RESULT), "messages[1].tool_calls[0].id", "empty_string"),
    (turns(calls()), "messages[1].tool_calls", "invalid_value"),
    (turns(calls(), {"role": "user", "content": "y"}), "messages[1].tool_calls", "invalid_value"),
    (turns(RESULT), "messages[1].tool_call_id", "invalid_value"),
    (turns(calls(), RESULT, RESULT), "messages[3].tool_call_id", "invalid_value"),
    (turns(calls(), {"role": "tool", "content": "1"}), "messages[2].tool_call_id", "missing_required_parameter"),
    (
        turns(calls(), {"role": "tool", "tool_call_id": "abcdefghi"}),
        "messages[2].content",
        "missing_required_parameter",
    ),
    (
        turns({"role": "user", "content": "y", "tool_calls": calls()["tool_calls"]}),
        "messages[1].tool_calls",
        "invalid_value",
    ),
    (turns({"role": "user", "content": "y", "tool_call_id": "a"}), "messages[1].tool_call_id", "invalid_value"),
    (
        turns({"role": "assistant", "content": "y"}) | {"continue_final_message": True},
        "continue_final_message",
        "invalid_value",
    ),
]


@pytest.mark.parametrize(("fields", "param", "code"), MALFORMED, ids=lambda value: str(value)[:60])
async def test_malformed_tools_are_a_400_that_says_where(fields: dict[str, Any], param: str, code: str) -> None:
    engine = FakeEngine(calling(ONE))
    async with client_of(v3_state(engine)) as client:
        for stream in (False, True):
            answer = await client.post(URL, json={**ASK, **fields, "stream": stream})
            error = answer.json()["error"]
            assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert not engine.submitted


async def test_tokenize_writes_the_tools_as_the_chat_does() -> None:
    engine = FakeEngine(calling(ONE))
    async with client_of(v3_state(engine)) as client:
        await client.post(URL, json=ASK)
        tokens = (await client.post("/tokenize", json={key: ASK[key] for key in ("messages", "tools")})).json()[
            "tokens"
        ]
    assert tokens == engine.submitted[0].prompt_token_ids


async def test_count_tokens_counts_the_tools_that_a_message_is_shown() -> None:
    engine = FakeEngine(calling(ONE))
    functions = [tool["function"] for tool in ASK["tools"]]
    tools = [{"name": one["name"], "input_schema": one.get("parameters", {"type": "object"})} for one in functions]
    prompt = {"model": MODEL, "messages": [{"role": "user", "content": "What is it like there?"}], "tools": tools}
    async with client_of(v3_state(engine)) as client:
        for choice in ("auto", "none"):
            asked = {**prompt, "tool_choice": {"type": choice}}
            await client.post("/v1/messages", json={**asked, "max_tokens": 60})
            counted = (await client.post("/v1/messages/count_tokens", json=asked)).json()["input_tokens"]
            assert counted == len(engine.submitted[-1].prompt_token_ids)
    shown, not_shown = (len(request.prompt_token_ids) for request in engine.submitted)
    assert shown > not_shown
