"""Tools in prompts: under version 3 to the id as mistral-common writes them, under version 1 in words."""

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
from server.tokenizer.tokenizer import Tokenizer
from server.tools.constraints import auto_tool_use
from server.tools.prompt_emulation import with_prompted_tools
from tests.support.mistral_tokenizers import v1_tokenizer, v3_tokenizer

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


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return v3_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def v1(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return v1_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


@cache
def oracle() -> MistralTokenizer:
    return MistralTokenizer.v3()


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
    """In OpenAI's shape, with roles in Mistral's order: a valid one for both servers."""
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


def mistral_ids(body: dict[str, Any]) -> list[int]:
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
    return list(oracle().encode_chat_completion(request).tokens)


def our_ids(tokenizer: Tokenizer, body: dict[str, Any]) -> tuple[list[int], list[str]]:
    request = validate(ChatCompletionRequest, body)
    template = ChatTemplate(None, tokenizer)
    use = auto_tool_use(request.tools)
    messages = request.messages if template.takes_tools else with_prompted_tools(request.messages, use)
    turns, repairs = repair_conversation(messages, template.system_place)
    return template.render(turns, tools=request.tools if template.takes_tools else ()), repairs


def test_tool_conversations_have_mistral_commons_ids(v3: Tokenizer, scale: int) -> None:
    rng = random.Random(11)
    for _ in range(250 * scale):
        body = random_conversation(rng)
        assert our_ids(v3, body) == (mistral_ids(body), []), json.dumps(body)


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


def test_foreign_ids_are_mapped_to_nine_characters_and_that_is_reported(v3: Tokenizer) -> None:
    foreign, repairs = our_ids(v3, with_ids("call_0123456789abcdef"))
    assert repairs == ["mapped-tool-ids"]
    text = v3.decode(foreign, skip_special_tokens=False)
    assert "call_0123456789abcdef" not in text
    (call_id,) = {part[:9] for part in text.split('id": "')[1:]}
    assert call_id.isalnum()
    assert our_ids(v3, with_ids(call_id)) == (foreign, [])


def test_words_beside_calls_stand_in_front_of_them(v3: Tokenizer) -> None:
    body = with_ids("abcdefghi")
    body["messages"][1]["content"] = "I look."
    text = v3.decode(our_ids(v3, body)[0], skip_special_tokens=False)
    assert 'I look.[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "abcdefghi"}]</s>[TOOL_RESULTS]' in text


def test_version_1_is_told_of_tools_calls_and_results_in_words(v1: Tokenizer) -> None:
    ids, repairs = our_ids(v1, with_ids("abcdefghi"))
    text = v1.decode(ids)
    assert [i for i in ids if v1.is_special(i)] == [1, 2]
    assert '{"type": "function", "function": {"name": "f"' in text
    assert '[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "abcdefghi"}]' in text
    assert '[INST] [TOOL_RESULTS] {"content": 1, "call_id": "abcdefghi"} [/INST]' in text
    assert "mapped-tool-ids" not in repairs


def test_version_1_needs_no_repair_for_tools_beside_a_system_text_or_for_several_results(v1: Tokenizer) -> None:
    body = with_ids("abcdefghi")
    body["messages"].insert(0, {"role": "system", "content": "Be brief."})
    body["messages"][2]["tool_calls"].append({**body["messages"][2]["tool_calls"][0], "id": "second"})
    body["messages"].append({"role": "tool", "tool_call_id": "second", "content": "two"})
    ids, repairs = our_ids(v1, body)
    assert repairs == []
    text = v1.decode(ids)
    assert text.startswith("[INST] These functions can be called") and "\n\nBe brief.\n\na [/INST]" in text
    assert '"call_id": "abcdefghi"}\n[TOOL_RESULTS] {"content": "two", "call_id": "second"} [/INST]' in text


def test_a_checkpoints_own_template_is_given_tools_calls_and_results(v3: Tokenizer) -> None:
    """By Hugging Face's names: `tools`, `tool_calls` with arguments as objects, and `tool_call_id`."""
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


def test_a_template_or_a_tokenizer_without_tools_takes_none(v1: Tokenizer, v3: Tokenizer) -> None:
    assert not ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", v3).takes_tools
    assert not ChatTemplate(None, v1).takes_tools
    assert ChatTemplate(None, v3).takes_tools
