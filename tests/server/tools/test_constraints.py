"""server/tools/constraints.py: schema keywords that no grammar can express are dropped, and the reply names them."""

from typing import Any

import pytest

from server.schemas.validation import MAX_UNKNOWN_FIELDS
from tests.server.tools.test_call_parser import allows, calling, v3_state
from tests.support.fake_engine import FakeEngine
from tests.support.serving import MODEL, client_of

pytestmark = pytest.mark.anyio

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
CALL = '[TOOL_CALLS] [{"name": "add", "arguments": {"tags": ["a", "a"]}}]'
OTHER_CALL = CALL.replace('"a", "a"', "1")
TAGS = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
SCHEMA = {"type": "object", "properties": {"tags": TAGS}, "required": ["tags"], "additionalProperties": False}
HELLO = [{"role": "user", "content": "Hello"}]


def asking(path: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A request with one tool, as the endpoint has it."""
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
async def test_what_no_grammar_can_say_is_left_out_and_named(path: str, named: str, stream: bool) -> None:
    engine = FakeEngine(calling(CALL))
    async with client_of(v3_state(engine)) as client:
        reply = await client.post(path, json=asking(path, SCHEMA, stream=stream) | {"zoo": 1})
    assert (reply.status_code, reply.headers["x-smoe-ignored-params"]) == (200, f"zoo, {named}")
    [request] = engine.submitted
    assert allows(request.grammar, CALL) and not allows(request.grammar, OTHER_CALL)


@pytest.mark.parametrize(
    ("keyword", "named"),
    [
        ({"propertyNames": {"type": "string"}}, "propertyNames"),
        ({"properties": {"a": {"type": "string", "format": "binary"}}}, "format"),
        ({"properties": {"a": {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}}}, "oneOf"),
        ({"if": {}, "then": {}}, "if"),
    ],
    ids=str,
)
async def test_a_strict_tool_or_a_strict_server_refuses_it(keyword: dict[str, Any], named: str) -> None:
    state = v3_state(FakeEngine(calling(CALL)))
    schema = {"type": "object", **keyword}
    async with client_of(state) as client:
        loose = await client.post(CHAT, json=asking(CHAT, schema))
        strict = await client.post(CHAT, json=asking(CHAT, schema, strict=True))
        state.strict_params = True
        by_server = await client.post(CHAT, json=asking(CHAT, schema))
    assert loose.headers["x-smoe-ignored-params"].split(", ")[0] == f"tools[0].function.parameters.{named}"
    for refused in (strict, by_server):
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (400, "tools[0].function.parameters")


async def test_many_such_tools_do_not_make_a_header_that_proxies_refuse() -> None:
    functions = [{"name": f"f{i}", "parameters": {"not": {}}} for i in range(33)]
    tools = [{"type": "function", "function": function} for function in functions]
    async with client_of(v3_state(FakeEngine(calling(CALL)))) as client:
        reply = await client.post(CHAT, json={"model": MODEL, "messages": HELLO, "tools": tools})
    assert reply.status_code == 200, reply.text
    assert len(reply.headers["x-smoe-ignored-params"].split(", ")) == MAX_UNKNOWN_FIELDS


async def test_a_schema_that_can_be_followed_is_and_nothing_is_said() -> None:
    engine = FakeEngine(calling(CALL))
    tags = {"type": "array", "items": {"type": "string"}, "maxItems": 1}
    schema = {**SCHEMA, "properties": {"tags": tags}}
    async with client_of(v3_state(engine)) as client:
        reply = await client.post(CHAT, json=asking(CHAT, schema))
    assert "x-smoe-ignored-params" not in reply.headers
    assert not allows(engine.submitted[0].grammar, CALL)
