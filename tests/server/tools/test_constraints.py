"""server/tools/constraints.py: an answer may call exactly the allowed tools, and unsupported schemas are reported."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from server.schemas.validation import MAX_UNKNOWN_FIELDS
from server.tools import constraints
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around, tokenizer
from tests.support.tool_calling import (
    ASK,
    CLOCK,
    CLOCK_CALL,
    NAMED,
    ONE,
    TWO,
    URL,
    allows,
    answered,
    calling,
    ready_with_vocab,
    v3_state,
)

pytestmark = pytest.mark.anyio

CALL = '[TOOL_CALLS] [{"name": "add", "arguments": {"tags": ["a", "a"]}}]'
OTHER_CALL = CALL.replace('"a", "a"', "1")
TAGS = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
SCHEMA = {"type": "object", "properties": {"tags": TAGS}, "required": ["tags"], "additionalProperties": False}
HELLO = [{"role": "user", "content": "Hello"}]
WORDS = "It is fine."
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": "1"}
PARAMETERS = "tools[1].function.parameters"


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize(
    ("fields", "possible", "forbidden"),
    [
        ({}, [WORDS, ONE, TWO, CLOCK_CALL], []),
        ({"parallel_tool_calls": False}, [WORDS, ONE], [TWO]),
        ({"tool_choice": "required"}, [ONE, TWO, CLOCK_CALL], [WORDS, ""]),
        ({"tool_choice": NAMED}, [CLOCK_CALL], [WORDS, ONE, TWO]),
        ({"tool_choice": "any"}, [ONE, TWO, CLOCK_CALL], [WORDS, ""]),
        ({"tool_choice": allowed("required", "clock")}, [CLOCK_CALL], [WORDS, ONE, TWO]),
        ({"tool_choice": allowed("auto", "clock")}, [CLOCK_CALL, WORDS], [ONE, TWO]),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, [ONE, CLOCK_CALL], ['{"a":1}']),
        ({"response_format": {"type": "json_object"}}, [ONE, '{"a":1}'], [WORDS]),
        ({"structured_outputs": {"choice": ["no", "yes"]}}, [ONE, "no", "yes"], [WORDS, "maybe"]),
    ],
    ids=str,
)
async def test_the_answer_can_be_exactly_what_tool_choice_allows(
    fields: dict[str, Any], possible: list[str], forbidden: list[str]
) -> None:
    _, _, request = await answered(ONE, **fields)
    assert [text for text in possible if not allows(request.grammar, text)] == []
    wrong = ['[TOOL_CALLS] [{"name": "other", "arguments": {}}]', '[TOOL_CALLS] [{"name": "weather", "arguments": {}}]']
    assert [text for text in [*forbidden, *wrong, "[TOOL_CALLS] []"] if allows(request.grammar, text)] == []


async def test_with_tool_choice_none_the_prompt_has_no_tools() -> None:
    _, _, request = await answered(WORDS, tool_choice="none")
    _, _, without = await answered(WORDS, tools=[])
    assert request.grammar is None
    assert request.prompt_token_ids == without.prompt_token_ids


@pytest.mark.parametrize("choice", ["required", NAMED])
async def test_a_version_1_model_is_made_to_call_by_prompt_and_grammar(choice: object) -> None:
    engine = FakeEngine(saying(CLOCK_CALL))
    engine.ready = ready_with_vocab(32000)
    async with client_of(state_around(engine)) as client:
        answer = await client.post(URL, json={**ASK, "tool_choice": choice})
    (choice_made,) = answer.json()["choices"]
    assert (choice_made["finish_reason"], choice_made["message"]["tool_calls"][0]["function"]["name"]) == (
        "tool_calls",
        "clock",
    )
    (request,) = engine.submitted
    assert "These functions can be called" in tokenizer().decode(request.prompt_token_ids)
    assert allows(request.grammar, CLOCK_CALL, version=1)
    assert not allows(request.grammar, WORDS, version=1)


async def test_a_version_1_model_decides_only_with_tool_emulation() -> None:
    engine = FakeEngine(saying(CLOCK_CALL))
    engine.ready = ready_with_vocab(32000)
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


def of_multiples(first: int, count: int) -> dict[str, Any]:
    """Return parameters with `count` numbers, each with another `multipleOf` from `first` on."""
    return {"properties": {f"p{i}": {"type": "integer", "multipleOf": first + i} for i in range(count)}}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        ({"properties": {"a": {"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}}}, "least common multiple"),
        (of_multiples(10_000_019, 1), "at most 10000"),
        (of_multiples(9950, 40), "add up to"),
        (of_multiples(9950, 40) | {"properties": {**of_multiples(9950, 40)["properties"], "tags": TAGS}}, "add up to"),
    ],
)
async def test_a_tool_whose_schema_has_large_automata_is_refused(
    parameters: dict[str, Any], part: str, strict: bool
) -> None:
    error = await refused(**tool(parameters=parameters, strict=strict))
    assert (error["param"], error["code"]) == (PARAMETERS, "invalid_value")
    assert part in error["message"]


async def test_all_tools_and_the_answer_share_the_bound_on_automata() -> None:
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": of_multiples(9900 + 6 * i, 6)}}
        for i in range(2)
    ]
    error = await refused(tools=tools)
    assert error["param"] == "tools" and "add up to" in error["message"]
    schema = {"name": "x", "schema": of_multiples(9800, 6)}
    error = await refused(tools=tools[:1], response_format={"type": "json_schema", "json_schema": schema})
    assert error["param"] == "tools" and "add up to" in error["message"]


async def refused(**fields: Any) -> dict[str, Any]:
    """Send a chat that is a 400 and reaches no engine; return its error."""
    engine = FakeEngine(calling(ONE))
    async with client_of(v3_state(engine)) as client:
        answer = await client.post(URL, json={**ASK, **fields})
    assert answer.status_code == 400 and not engine.submitted, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


MALFORMED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": "clock"}, "tools", "invalid_type"),
    ({"tools": [{}]}, "tools[0].type", "missing_required_parameter"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    ({"tools": [{"type": "web"}]}, "tools[0].type", "invalid_value"),
    ({"tools": [CLOCK] * 2}, "tools[1].function.name", "invalid_value"),
    ({"tools": [CLOCK] * 10_000}, "tools", "array_above_max_length"),
    (tool(name="two words"), "tools[1].function.name", "invalid_value"),
    (tool(name="a" * 129), "tools[1].function.name", "invalid_value"),
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
    (
        {"tool_choice": "required", "structured_outputs": {"regex": "a"}},
        "structured_outputs.regex",
        "invalid_value",
    ),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice", "invalid_value"),
    ({"tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools", "empty_array"),
    ({"tool_choice": allowed("none", "clock")}, "tool_choice.allowed_tools.mode", "invalid_value"),
    ({"tool_choice": allowed("auto", "other")}, "tool_choice", "invalid_value"),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, "structured_outputs.grammar", "invalid_value"),
    ({"tool_choice": "required", "ignore_eos": True}, "ignore_eos", "invalid_value"),
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
        "tools",
        "invalid_value",
    ),
    (turns({"role": "assistant", "content": "y", "prefix": True}), "tools", "invalid_value"),
]


@pytest.mark.parametrize(("fields", "param", "code"), MALFORMED, ids=lambda value: str(value)[:60])
async def test_malformed_tools_are_a_400_that_names_the_parameter(
    fields: dict[str, Any], param: str, code: str
) -> None:
    engine = FakeEngine(calling(ONE))
    async with client_of(v3_state(engine)) as client:
        for stream in (False, True):
            answer = await client.post(URL, json={**ASK, **fields, "stream": stream})
            error = answer.json()["error"]
            assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert not engine.submitted


CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def request_with_tool(path: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Build a request with one tool in the endpoint's format."""
    body: dict[str, Any] = {"model": MODEL, "stream": more.pop("stream", False)}
    if path == CHAT:
        function = {"name": "add", "parameters": schema, **more}
        return body | {"messages": HELLO, "tools": [{"type": "function", "function": function}]}
    if path == RESPONSES:
        return body | {"input": "Hello", "tools": [{"type": "function", "name": "add", "parameters": schema, **more}]}
    return body | {"messages": HELLO, "max_tokens": 99, "tools": [{"name": "add", "input_schema": schema}]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "named"),
    [
        (CHAT, "tools[0].function.parameters.uniqueItems"),
        (RESPONSES, "tools[0].parameters.uniqueItems"),
        (MESSAGES, "tools[0].input_schema.uniqueItems"),
    ],
)
async def test_unsupported_keywords_of_a_schema_are_ignored_and_reported(path: str, named: str, stream: bool) -> None:
    engine = FakeEngine(calling(CALL))
    async with client_of(v3_state(engine)) as client:
        reply = await client.post(path, json=request_with_tool(path, SCHEMA, stream=stream) | {"zoo": 1})
    assert (reply.status_code, reply.headers["x-smoe-ignored-params"]) == (200, f"zoo, {named}")
    [request] = engine.submitted
    assert allows(request.grammar, CALL) and not allows(request.grammar, OTHER_CALL)


@pytest.mark.parametrize(
    ("keyword", "named"),
    [
        ({"propertyNames": {"type": "string", "format": "date"}}, "propertyNames"),
        ({"properties": {"a": {"type": "string", "format": "binary"}}}, "format"),
        ({"properties": {"a": {"oneOf": [{"type": "string"}, {"type": "string", "pattern": "a"}]}}}, "oneOf"),
        ({"if": {"properties": {"a": {"pattern": "x"}}}, "then": {}}, "if"),
    ],
    ids=str,
)
async def test_a_strict_tool_or_a_strict_server_refuses_unsupported_keywords(
    keyword: dict[str, Any], named: str
) -> None:
    state = v3_state(FakeEngine(calling(CALL)))
    schema = {"type": "object", **keyword}
    async with client_of(state) as client:
        lenient = await client.post(CHAT, json=request_with_tool(CHAT, schema))
        strict = await client.post(CHAT, json=request_with_tool(CHAT, schema, strict=True))
        state.strict_params = True
        by_server = await client.post(CHAT, json=request_with_tool(CHAT, schema))
    assert lenient.headers["x-smoe-ignored-params"].split(", ")[0] == f"tools[0].function.parameters.{named}"
    for refused in (strict, by_server):
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (400, "tools[0].function.parameters")


async def test_the_smallest_schemas_are_translated_in_a_thread_since_their_text_does_not_tell_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: dict[str, set[int]] = {"schema_constraint": set(), "constraint_of": set()}

    def recorded(name: str) -> Callable[..., Any]:
        translate: Callable[..., Any] = getattr(constraints, name)

        def record(*args: Any, **options: Any) -> Any:
            threads[name].add(threading.get_ident())
            return translate(*args, **options)

        return record

    for name in threads:
        monkeypatch.setattr(constraints, name, recorded(name))
    await answered(ONE, structured_outputs={"choice": ["yes"]})
    assert all(used and threading.get_ident() not in used for used in threads.values())


async def test_many_such_tools_do_not_make_a_header_too_long_for_proxies() -> None:
    functions = [{"name": f"f{i}", "parameters": {"uniqueItems": True}} for i in range(33)]
    tools = [{"type": "function", "function": function} for function in functions]
    async with client_of(v3_state(FakeEngine(calling(CALL)))) as client:
        reply = await client.post(CHAT, json={"model": MODEL, "messages": HELLO, "tools": tools})
    assert reply.status_code == 200, reply.text
    assert len(reply.headers["x-smoe-ignored-params"].split(", ")) == MAX_UNKNOWN_FIELDS


async def test_a_supported_schema_is_followed_and_nothing_is_reported() -> None:
    engine = FakeEngine(calling(CALL))
    tags = {"type": "array", "items": {"type": "string"}, "maxItems": 1}
    schema = {**SCHEMA, "properties": {"tags": tags}}
    async with client_of(v3_state(engine)) as client:
        reply = await client.post(CHAT, json=request_with_tool(CHAT, schema))
    assert "x-smoe-ignored-params" not in reply.headers
    assert not allows(engine.submitted[0].grammar, CALL)
