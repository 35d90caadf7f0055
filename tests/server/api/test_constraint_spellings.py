"""No constraint on the output is dropped with a header only: each spelling of other servers is followed or a 400."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from server.chat.template import ChatTemplate
from server.generation.sampling_params import GenerationDefaults
from server.generation.state import ServerState, TextFrontend
from tests.support.fake_engine import FakeEngine
from tests.support.inline_sandbox import InlineSandbox
from tests.support.serving import MODEL, client_of, saying, state_around, tokenizer

pytestmark = pytest.mark.anyio

COMPLETIONS, CHAT, RESPONSES, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"
HELLO = [{"role": "user", "content": "Hello"}]
BASE: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"model": MODEL, "prompt": "Hello"},
    CHAT: {"model": MODEL, "messages": HELLO},
    RESPONSES: {"model": MODEL, "input": "Hello"},
    MESSAGES: {"model": MODEL, "messages": HELLO, "max_tokens": 9},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
GBNF, LARK, REGEX, WORDS = 'root ::= "a" | "b"', 'start: "a" | "b"', "a|b", ["a", "b"]
OPENAI = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
FUNCTION = {"name": "f", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}

# Each name that OpenAI, Anthropic, vLLM, SGLang, llama.cpp, TGI, Ollama, NIM, Fireworks, Together and Gemini give to a
# constraint, with values of its usual forms.
SPELLINGS: list[tuple[str, Any]] = [
    *[
        ("response_format", value)
        for value in (OPENAI, {"type": "json_object"}, {"type": "json_object", "schema": SCHEMA})
    ],
    *[("response_format", {"type": kind, "value": SCHEMA}) for kind in ("json", "regex", "structural_tag", "grammar")],
    ("response_format", {"type": "grammar", "grammar": GBNF}),
    ("response_format", {"type": "json_schema", "schema": SCHEMA}),
    *[("structured_outputs", {"json": SCHEMA}), ("structured_outputs", {"regex": REGEX})],
    *[("structured_outputs", {"grammar": text}) for text in (GBNF, LARK)],
    *[("structured_outputs", {"choice": WORDS}), ("structured_outputs", {"structural_tag": "{}"})],
    ("structured_outputs", {"json": SCHEMA, "whitespace_pattern": " "}),
    *[("guided_json", SCHEMA), ("guided_regex", REGEX), ("guided_choice", WORDS), ("guided_grammar", GBNF)],
    *[("guided_json_object", True), ("guided_whitespace_pattern", " "), ("guided_decoding", {"json": SCHEMA})],
    *[("grammar", GBNF), ("grammar", {"type": "json", "value": SCHEMA}), ("grammar_lazy", True)],
    *[("json_schema", SCHEMA), ("json_schema", '{"type": "object"}'), ("regex", REGEX), ("ebnf", GBNF)],
    *[("structural_tag", "{}"), ("stop_regex", REGEX), ("format", "json"), ("format", SCHEMA), ("json_mode", True)],
    *[("output_format", {"type": "json_schema", "schema": SCHEMA}), ("nvext", {"guided_json": SCHEMA})],
    ("output_config", {"format": {"type": "json_schema", "schema": SCHEMA}}),
    ("output_config", {"format": {"type": "regex", "pattern": REGEX}}),
    *[("response_schema", SCHEMA), ("response_json_schema", SCHEMA), ("response_mime_type", "application/json")],
    *[
        ("text", {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}),
        ("text", {"format": {"type": "json_object"}}),
    ],
    *[
        ("text", {"format": {"type": "grammar", "grammar": GBNF}}),
        ("text", {"format": {"type": "text", "regex": REGEX}}),
    ],
    *[("tool_choice", "required"), ("tool_choice", "any"), ("tool_choice", {"type": "any"})],
    *[("tool_choice", {"type": "function", "function": {"name": "f"}}), ("tool_choice", {"type": "web_search"})],
    *[("function_call", {"name": "f"})],
]
OWN = {  # the fields by these names that an endpoint has; all others must be refused
    COMPLETIONS: {
        "response_format",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "json_schema",
        "grammar",
        "regex",
        "ebnf",
    },
    RESPONSES: {"text"},
    MESSAGES: {"output_config"},
}
OWN[CHAT] = OWN[COMPLETIONS]
NO_CONSTRAINT = {(COMPLETIONS, "text"), (CHAT, "text"), (MESSAGES, "text")}  # a name that only Responses has


@cache
def texts() -> TextFrontend:
    """Return one frontend for all tests: each has its own compiler of grammars, which is costly to create."""
    return TextFrontend(tokenizer(), ChatTemplate(None, tokenizer()), GenerationDefaults(), InlineSandbox())


def state_of(engine: FakeEngine) -> ServerState:
    return replace(state_around(engine), texts=texts())


@pytest.mark.parametrize(("name", "value"), SPELLINGS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("path", BASE)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_constraint_is_followed_or_refused_by_name(path: str, name: str, value: Any, stream: bool) -> None:
    if (path, name) in NO_CONSTRAINT:
        return
    engine = FakeEngine(saying("a"))
    async with client_of(state_of(engine)) as client:
        reply = await client.post(path, json={**BASE[path], name: value, "stream": stream})
    if reply.status_code == 200:
        assert name in OWN[path] and engine.submitted[0].grammar is not None
        assert "x-smoe-ignored-params" not in reply.headers
    else:
        assert reply.status_code == 400 and not engine.submitted
        assert name in (reply.json()["error"].get("param") or "") or f"'{name}" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "name", "value", "instead"),
    [
        (CHAT, "format", "json", "response_format"),
        (CHAT, "structural_tag", "{}", "structured_outputs.grammar"),
        (COMPLETIONS, "stop_regex", REGEX, "stop"),
        (RESPONSES, "json_schema", SCHEMA, "text.format"),
        (MESSAGES, "grammar", GBNF, "output_config.format"),
        (RESPONSES, "response_format", OPENAI, "text.format"),
        (MESSAGES, "output_format", OPENAI, "output_config.format"),
    ],
)
async def test_the_error_names_the_field_that_does_it(path: str, name: str, value: Any, instead: str) -> None:
    async with client_of(state_of(FakeEngine(saying("a")))) as client:
        reply = await client.post(path, json={**BASE[path], name: value})
    assert reply.json()["error"]["message"] == f"'{name}' is not supported here. Send '{instead}' instead."


@pytest.mark.parametrize(
    ("name", "value"), [("format", ""), ("json_schema", {}), ("grammar", ""), ("response_format", {"type": "text"})]
)
@pytest.mark.parametrize("path", BASE)
async def test_a_value_that_asks_for_nothing_is_accepted(path: str, name: str, value: Any) -> None:
    engine = FakeEngine(saying("a"))
    async with client_of(state_of(engine)) as client:
        reply = await client.post(path, json={**BASE[path], name: value})
    assert reply.status_code == 200 and engine.submitted[0].grammar is None


@pytest.mark.parametrize(
    ("alias", "member", "value"),
    [
        *[
            ("json_schema", "json", SCHEMA),
            ("json_schema", "json", '{"type": "object"}'),
            ("guided_json", "json", SCHEMA),
        ],
        *[("grammar", "grammar", GBNF), ("ebnf", "grammar", GBNF), ("guided_grammar", "grammar", GBNF)],
        *[("regex", "regex", REGEX), ("guided_regex", "regex", REGEX), ("guided_choice", "choice", WORDS)],
    ],
    ids=str,
)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_an_alias_constrains_as_the_member_of_structured_outputs(
    path: str, alias: str, member: str, value: Any
) -> None:
    engine = FakeEngine(saying("a"))
    async with client_of(state_of(engine)) as client:
        for fields in ({alias: value}, {"structured_outputs": {member: value}}):
            assert (await client.post(path, json={**BASE[path], **fields})).status_code == 200
    assert engine.submitted[0].grammar == engine.submitted[1].grammar is not None
