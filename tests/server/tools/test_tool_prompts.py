"""Tools in prompts of versions 3 and 7, with mistral-common as the oracle, and through a checkpoint's own template."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, ToolMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest as MistralRequest
from mistral_common.protocol.instruct.tool_calls import FunctionCall, ToolCall
from mistral_common.protocol.instruct.tool_calls import Tool as MistralTool
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from server.chat.repair import repair_conversation
from server.chat.template import ChatTemplate
from server.chat.turns import ALPHANUMERICS
from server.schemas import ChatCompletionRequest, validate
from server.tokenizer.tokenizer import Tokenizer, load_tokenizer
from server.tools.constraints import auto_tool_use
from server.tools.prompt_emulation import with_prompted_tools
from tests.support.checkpoints.byte_level import cut_tekken
from tests.support.checkpoints.mistral_tokenizers import V7, v3_tokenizer, v7_tokenizer
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of
from tests.support.tool_calling import ASK, ONE, URL, calling, v3_state

WORDS = [
    "Paris",
    "wetter",
    "日本",
    "\U00010348",
    "[INST]",
    "</s>",
    "[TOOL_CALLS]",
    "[/AVAILABLE_TOOLS]",
    'a"b\\',
    "0.10",
    "{",
    "<",
]
SCALARS = [0, -7, 2.50, 1e30, True, None, "x", "[TOOL_RESULTS] y", "é\n"]


def words(rng: random.Random, least: int = 1) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, 4)))


def json_value(rng: random.Random, depth: int = 0) -> Any:
    if depth == 2 or rng.random() < 0.5:
        return rng.choice(SCALARS)
    if rng.random() < 0.5:
        return [json_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return json_object(rng, depth + 1)


def json_object(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    return {rng.choice(WORDS): json_value(rng, depth) for _ in range(rng.randint(0, 3))}


def random_tool(rng: random.Random, index: int) -> dict[str, Any]:
    function: dict[str, Any] = {"name": f"{rng.choice(['get', 'Set-it', '_x'])}_{index}"}
    if rng.random() < 0.7:
        function["description"] = words(rng)
    if rng.random() < 0.8:
        properties = {name: {"type": "string", "description": words(rng)} for name in rng.sample(WORDS, 2)}
        function["parameters"] = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": function}


def random_conversation(rng: random.Random) -> dict[str, Any]:
    """Build a conversation in OpenAI's format with roles in Mistral's order, so that it is valid for both."""
    tools = [random_tool(rng, i) for i in range(rng.randint(1, 3))]
    messages: list[dict[str, Any]] = [{"role": "system", "content": words(rng)}] if rng.random() < 0.5 else []
    for _ in range(rng.randint(1, 3)):
        messages.append({"role": "user", "content": words(rng)})
        for _ in range(rng.randint(0, 2)):
            messages += called_and_answered(rng, tools)
        messages.append({"role": "assistant", "content": words(rng)})
    if rng.random() < 0.5:
        messages.append({"role": "user", "content": words(rng)})
        if rng.random() < 0.5:
            messages += called_and_answered(rng, tools)
    else:
        messages.pop()
    return {"model": "m", "messages": messages, "tools": tools}


def called_and_answered(rng: random.Random, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    calls = []
    for _ in range(rng.randint(1, 3)):
        arguments = json.dumps(json_object(rng), indent=rng.choice([None, 2]))
        function = {"name": rng.choice(tools)["function"]["name"], "arguments": arguments}
        calls.append({"id": "".join(rng.choices(ALPHANUMERICS, k=9)), "type": "function", "function": function})
    results = [rng.choice(["", words(rng), json.dumps(json_value(rng)), "[1,  2]", "{not json", "NaN"]) for _ in calls]
    answers = [{"role": "tool", "tool_call_id": c["id"], "content": r} for c, r in zip(calls, results, strict=True)]
    return [{"role": "assistant", "content": None, "tool_calls": calls}, *answers]


def mistral_ids(oracle: MistralTokenizer, body: dict[str, Any]) -> list[int]:
    kinds = {"system": SystemMessage, "user": UserMessage, "tool": ToolMessage, "assistant": AssistantMessage}
    messages = []
    for message in body["messages"]:
        fields = {key: value for key, value in message.items() if key not in ("role", "tool_calls")}
        if "tool_calls" in message:
            fields["tool_calls"] = [
                ToolCall(id=call["id"], function=FunctionCall(**call["function"])) for call in message["tool_calls"]
            ]
        messages.append(kinds[message["role"]](**fields))
    tools = [MistralTool.from_openai(tool) for tool in body["tools"]]
    request = MistralRequest(messages=messages, tools=tools)
    return list(oracle.encode_chat_completion(request).tokens)


@cache
def template_of(tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(None, tokenizer)


def our_ids(tokenizer: Tokenizer, body: dict[str, Any]) -> tuple[list[int], list[str]]:
    request = validate(ChatCompletionRequest, body)
    template = template_of(tokenizer)
    use = auto_tool_use(request.tools)
    messages = request.messages if template.takes_tools else with_prompted_tools(request.messages, use)
    turns, repairs = repair_conversation(messages, template.system_place)
    return template.render(turns, tools=request.tools if template.takes_tools else ()), repairs


VERSIONS = ("3", "7", "3 of Tekken", "7 of Tekken")


@pytest.mark.parametrize("version", VERSIONS)
def test_tool_conversations_have_mistral_commons_ids(version: str, tmp_path: Path, scale: int) -> None:
    tokenizer, oracle = _of_version(version, tmp_path)
    rng = random.Random(11)
    for _ in range(250 * scale):
        body = random_conversation(rng)
        assert our_ids(tokenizer, body) == (mistral_ids(oracle, body), []), json.dumps(body)


def _of_version(version: str, path: Path) -> tuple[Tokenizer, MistralTokenizer]:
    if version == "3":
        return v3_tokenizer(path), MistralTokenizer.v3()
    if version == "7":
        return v7_tokenizer(path), MistralTokenizer.from_file(V7)
    file = cut_tekken(path, f"v{version[0]}")
    return load_tokenizer(path), MistralTokenizer.from_file(file)


def test_no_text_of_tools_calls_or_results_becomes_a_control_token(v3: Tokenizer) -> None:
    rng = random.Random(12)
    marks = [v3.special_token_id(text) for text in ("[TOOL_CALLS]", "[TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[INST]")]
    for _ in range(50):
        body = random_conversation(rng)
        ids, _ = our_ids(v3, body)
        messages = body["messages"]
        expected = [
            sum("tool_calls" in message for message in messages),
            sum(message["role"] == "tool" for message in messages),
            1,
            sum(message["role"] == "user" for message in messages),
        ]
        assert [ids.count(mark) for mark in marks if mark is not None] == expected


def with_ids(call_id: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"}
    call = {"id": call_id, "type": "function", "function": function}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": "1"},
    ]
    return {"model": "m", "messages": messages, "tools": [{"type": "function", "function": {"name": "f"}}]}


def test_foreign_ids_are_mapped_to_nine_characters_and_reported(v3: Tokenizer) -> None:
    foreign, repairs = our_ids(v3, with_ids("call_0123456789abcdef"))
    assert repairs == ["mapped-tool-ids"]
    text = v3.decode(foreign, skip_special_tokens=False)
    assert "call_0123456789abcdef" not in text
    (call_id,) = {part[:9] for part in text.split('id": "')[1:]}
    assert call_id.isalnum()
    assert our_ids(v3, with_ids(call_id)) == (foreign, [])


def test_text_beside_calls_is_written_in_front_of_them(v3: Tokenizer) -> None:
    body = with_ids("abcdefghi")
    body["messages"][1]["content"] = "I look."
    text = v3.decode(our_ids(v3, body)[0], skip_special_tokens=False)
    assert 'I look.[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "abcdefghi"}]</s>[TOOL_RESULTS]' in text


def test_a_checkpoints_own_template_gets_tools_calls_and_results(v3: Tokenizer) -> None:
    """Their names are Hugging Face's: `tools`, `tool_calls` with arguments as objects, and `tool_call_id`."""
    source = (
        "{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
        "{% for m in messages %}"
        "{% if m.role == 'tool' %}[TOOL_RESULTS]{{ m.tool_call_id }}={{ m.content }}[/TOOL_RESULTS]"
        "{% elif m.tool_calls is defined %}[TOOL_CALLS]"
        "{% for c in m.tool_calls %}{{ c.id }}:{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
        "{% else %}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}"
    )
    template = ChatTemplate(source, v3)
    assert template.takes_tools
    request = validate(ChatCompletionRequest, with_ids("abcdefghi"))
    text = v3.decode(template.render(request.messages, tools=request.tools), skip_special_tokens=False)
    tools = '[{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]'
    calls = "[INST] a[/INST][TOOL_CALLS] abcdefghi:f{}[TOOL_RESULTS] abcdefghi=1[/TOOL_RESULTS]"
    assert text == f"<s>[AVAILABLE_TOOLS] {tools}[/AVAILABLE_TOOLS]{calls}"


def test_without_tools_in_template_or_tokenizer_takes_tools_is_false(v1: Tokenizer, v3: Tokenizer) -> None:
    assert not ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", v3).takes_tools
    assert not ChatTemplate(None, v1).takes_tools
    assert ChatTemplate(None, v3).takes_tools


@pytest.mark.anyio
async def test_tokenize_writes_the_tools_as_the_chat_does() -> None:
    engine = FakeEngine(calling(ONE))
    async with client_of(v3_state(engine)) as client:
        await client.post(URL, json=ASK)
        tokens = (await client.post("/tokenize", json={key: ASK[key] for key in ("messages", "tools")})).json()[
            "tokens"
        ]
    assert tokens == engine.submitted[0].prompt_token_ids


@pytest.mark.anyio
async def test_count_tokens_counts_the_tools_in_a_messages_prompt() -> None:
    engine = FakeEngine(calling(ONE))
    functions = [tool["function"] for tool in ASK["tools"]]
    tools = [{"name": one["name"], "input_schema": one.get("parameters", {"type": "object"})} for one in functions]
    prompt = {"model": MODEL, "messages": [{"role": "user", "content": "What is it like there?"}], "tools": tools}
    async with client_of(v3_state(engine)) as client:
        for choice in ("auto", "none"):
            body = {**prompt, "tool_choice": {"type": choice}}
            await client.post("/v1/messages", json={**body, "max_tokens": 60})
            counted = (await client.post("/v1/messages/count_tokens", json=body)).json()["input_tokens"]
            assert counted == len(engine.submitted[-1].prompt_token_ids)
    shown, not_shown = (len(request.prompt_token_ids) for request in engine.submitted)
    assert shown > not_shown
