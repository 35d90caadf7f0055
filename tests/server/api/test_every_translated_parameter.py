"""Every parameter of Responses, Messages, Ollama's API, /tokenize and /detokenize has an effect: else its row fails.

tests/e2e/api/test_every_parameter.py tests those of completions and chat. A row has the base fields, the parameter's
value, and a check of the replies without and with it. The rows are compared with the schemas: a new parameter
needs a row.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from engine.types import Request
from server.chat.template import ChatTemplate
from server.schemas import (
    CountTokensRequest,
    DetokenizeRequest,
    MessagesRequest,
    OllamaChatRequest,
    OllamaGenerateRequest,
    ResponsesRequest,
    TokenizeRequest,
)
from server.schemas.validation import RequestModel
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around, tokenizer

RESPONSES, MESSAGES, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
OLLAMA_CHAT, OLLAMA_GENERATE = "/api/chat", "/api/generate"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
HELLO = [{"role": "user", "content": "Hello"}]
TURNS = [*HELLO, {"role": "assistant", "content": "b"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
BASE: dict[str, dict[str, Any]] = {
    RESPONSES: {"model": MODEL, "input": "Hello"},
    MESSAGES: {"model": MODEL, "messages": HELLO, "max_tokens": 9},
    COUNT: {"model": MODEL, "messages": HELLO},
    OLLAMA_CHAT: {"model": MODEL, "messages": HELLO, "stream": False},
    OLLAMA_GENERATE: {"model": MODEL, "prompt": "Hello", "stream": False},
    TOKENIZE: {"messages": HELLO},
    DETOKENIZE: {"tokens": [1, 22557]},
}
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% if not loop.last %} over{% endif %}{% endfor %} out"
    "{% if add_generation_prompt %} GO{% endif %}{{ date_string or '' }}"
)


@dataclass
class Result:
    """The result of a request: the HTTP reply, and the engine's requests."""

    http: httpx.Response
    submitted: list[Request]

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = self.http.json()
        return body

    @property
    def request(self) -> Request:
        [request] = self.submitted
        return request

    @property
    def usage(self) -> dict[str, Any]:
        usage: dict[str, Any] = self.body["usage"]
        return usage


Check = Callable[[Result, Result], bool]


@dataclass(frozen=True)
class Row:
    """A parameter's value, and a check of the results without and with it."""

    value: Any
    check: Check
    start: dict[str, Any] = field(default_factory=dict)


def reaches(value: Any, *names: str) -> Check:
    """Check that each of these fields of the engine's request or its sampling parameters has the value."""

    def check(before: Result, after: Result) -> bool:
        values = [
            [getattr(result.request, name, getattr(result.request.params, name, None)) for name in names]
            for result in (before, after)
        ]
        return values[0] != values[1] == [value] * len(names)

    return check


def status(code: int) -> Check:
    return lambda before, after: (before.http.status_code, after.http.status_code) == (200, code)


def prompts_differ(before: Result, after: Result) -> bool:
    return before.request.prompt_token_ids != after.request.prompt_token_ids


def grammars_differ(before: Result, after: Result) -> bool:
    return before.request.grammar != after.request.grammar is not None


def seconds(name: str) -> Check:
    return lambda before, after: getattr(before.request, name) is None is not getattr(after.request, name)


MASK = [[False, True, True, *[False] * 5]]
SHARED: dict[str, Row] = {
    "model": Row("nope", status(404)),
    "stream": Row(True, lambda b, a: a.http.headers["content-type"].startswith("text/event-stream")),
    "temperature": Row(0.5, reaches(0.5, "temperature")),
    "top_p": Row(0.5, reaches(0.5, "top_p")),
    "top_k": Row(5, reaches(5, "top_k")),
    "seed": Row(7, reaches(7, "seed")),
    "priority": Row(-3, reaches(-3, "priority")),
    "cache_salt": Row("s", reaches("s", "cache_salt")),
    "timeout_s": Row(60, seconds("deadline_s")),
    "queue_timeout_s": Row(60, seconds("queue_deadline_s")),
    "experts_per_token": Row(1, reaches(1, "experts_per_token")),
    "expert_mask": Row(MASK, reaches(MASK, "expert_mask")),
    "expert_usage": Row(
        True, lambda b, a: "expert_tokens" not in b.usage and set(a.usage["expert_tokens"]) == {"prompt", "completion"}
    ),
}


def text_logprobs(result: Result) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = result.body["output"][0]["content"][0]["logprobs"]
    return entries


LONG = [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "b"}, *HELLO] * 3
FLAT_TOOL = {"type": "function", "name": "f", "parameters": CITY}
MUST: dict[str, Any] = {"tools": [FLAT_TOOL], "tool_choice": "required"}
RESPONSES_ROWS: dict[str, Row] = {
    **SHARED,
    "input": Row("Goodbye", prompts_differ),
    "instructions": Row("Be brief.", prompts_differ),
    "max_output_tokens": Row(3, reaches(3, "max_tokens")),
    "text": Row({"format": {"type": "json_object"}}, grammars_differ),
    "tools": Row([FLAT_TOOL, {**FLAT_TOOL, "name": "g"}], grammars_differ, MUST),
    "tool_choice": Row(
        {"type": "function", "name": "f"}, grammars_differ, {"tools": [FLAT_TOOL], "tool_choice": "none"}
    ),
    "parallel_tool_calls": Row(False, grammars_differ, MUST),
    "include": Row(["message.output_text.logprobs"], lambda b, a: bool(not text_logprobs(b) and text_logprobs(a))),
    "top_logprobs": Row(
        2,
        lambda b, a: [len(entry["top_logprobs"]) for r in (b, a) for entry in text_logprobs(r)][::3] == [0, 2],
        {"include": ["message.output_text.logprobs"]},
    ),
    "truncation": Row("auto", lambda b, a: (b.http.status_code, a.http.status_code) == (400, 200), {"input": LONG}),
    "metadata": Row({"a": "b"}, lambda b, a: (b.body["metadata"], a.body["metadata"]) == ({}, {"a": "b"})),
}
TOOL = {"name": "f", "input_schema": CITY}
ANY: dict[str, Any] = {"tools": [TOOL], "tool_choice": {"type": "any"}}
NONE: dict[str, Any] = {"tools": [TOOL], "tool_choice": {"type": "none"}}
MESSAGES_ROWS: dict[str, Row] = {
    **SHARED,
    "messages": Row([{"role": "user", "content": "Goodbye"}], prompts_differ),
    "system": Row("Be brief.", prompts_differ),
    "max_tokens": Row(3, reaches(3, "max_tokens")),
    "stop_sequences": Row(
        ["b"], lambda b, a: (a.body["stop_reason"], a.body["stop_sequence"]) == ("stop_sequence", "b")
    ),
    "tools": Row([TOOL, {**TOOL, "name": "g"}], grammars_differ, ANY),
    "tool_choice": Row({"type": "any", "disable_parallel_tool_use": True}, grammars_differ, ANY),
    "output_format": Row({"type": "json_schema", "schema": CITY}, grammars_differ),
    "output_config": Row({"format": {"type": "json_schema", "schema": CITY}}, grammars_differ),
}


def fewer(before: Result, after: Result) -> bool:
    return bool(before.body["input_tokens"] > after.body["input_tokens"])


COUNT_ROWS: dict[str, Row] = {
    "model": Row("nope", status(404)),
    "messages": Row([{"role": "user", "content": "a"}], fewer, {"messages": TURNS[:1] * 2}),
    "system": Row("a", fewer, {"system": "Be brief."}),
    "tools": Row([], fewer, {"tools": [TOOL]}),
    "tool_choice": Row({"type": "none"}, fewer, {"tools": [TOOL]}),
}
OLLAMA_ROWS: dict[str, Row] = {
    **SHARED,
    "stream": Row(True, lambda b, a: a.http.headers["content-type"] == "application/x-ndjson"),
    "expert_usage": Row(
        True, lambda b, a: "expert_tokens" not in b.body and set(a.body["expert_tokens"]) == {"prompt", "completion"}
    ),
    "format": Row(CITY, grammars_differ),
    "options": Row({"num_predict": 3, "seed": 7}, reaches(3, "max_tokens")),
}
OLLAMA_TOOL = {"type": "function", "function": {"name": "f", "parameters": CITY}}
OLLAMA_CHAT_ROWS: dict[str, Row] = {
    **OLLAMA_ROWS,
    "messages": Row([{"role": "user", "content": "Goodbye"}], prompts_differ),
    "tools": Row([OLLAMA_TOOL], prompts_differ),
    "truncate": Row(False, lambda b, a: (b.http.status_code, a.http.status_code) == (200, 400), {"messages": LONG}),
}
OLLAMA_GENERATE_ROWS: dict[str, Row] = {
    **OLLAMA_ROWS,
    "prompt": Row("Goodbye", prompts_differ),
    "system": Row("Be brief.", prompts_differ),
    "raw": Row(True, prompts_differ),
}


def has_text(text: str) -> Check:
    """Check that the tokens decode to this text, and that they were others before."""
    return lambda before, after: before.body != after.body and tokenizer().decode(after.body["tokens"]) == text


TOKENIZE_ROWS: dict[str, Row] = {
    "model": Row("nope", status(404)),
    "prompt": Row("a", has_text("a"), {"prompt": "b", "messages": None}),
    "add_special_tokens": Row(
        False, lambda b, a: bool(b.body["tokens"][1:] == a.body["tokens"]), {"prompt": "b", "messages": None}
    ),
    "messages": Row(TURNS, has_text("Hello overb out GO")),
    "add_generation_prompt": Row(False, has_text("Hello out")),
    "continue_final_message": Row(True, has_text("Hello overb"), {"messages": TURNS}),
    "chat_template_kwargs": Row({"date_string": " today"}, has_text("Hello out GO today")),
    "tools": Row(
        [{"type": "function", "function": {"name": "f", "parameters": CITY}}],
        lambda b, a: bool(b.body["count"] < a.body["count"]),
    ),
    "return_token_strs": Row(True, lambda b, a: len(a.body["token_strs"]) == a.body["count"]),
}
DETOKENIZE_ROWS: dict[str, Row] = {
    "model": Row("nope", status(404)),
    "tokens": Row([1], lambda b, a: (b.body["prompt"], a.body["prompt"]) == ("<s> Hello", "<s>")),
    "skip_special_tokens": Row(True, lambda b, a: a.body["prompt"] == "Hello"),
}
ENDPOINTS: dict[str, tuple[type[RequestModel], dict[str, Row]]] = {
    RESPONSES: (ResponsesRequest, RESPONSES_ROWS),
    MESSAGES: (MessagesRequest, MESSAGES_ROWS),
    COUNT: (CountTokensRequest, COUNT_ROWS),
    OLLAMA_CHAT: (OllamaChatRequest, OLLAMA_CHAT_ROWS),
    OLLAMA_GENERATE: (OllamaGenerateRequest, OLLAMA_GENERATE_ROWS),
    TOKENIZE: (TokenizeRequest, TOKENIZE_ROWS),
    DETOKENIZE: (DetokenizeRequest, DETOKENIZE_ROWS),
}
IN_THE_LOG = {RESPONSES: {"user": "somebody"}, MESSAGES: {"metadata": {"user_id": "somebody"}}}
NO_EFFECT = {
    COUNT: {"output_config", "output_format"},  # a format is not part of the prompt
    OLLAMA_CHAT: {"keep_alive"},
    OLLAMA_GENERATE: {"keep_alive"},
}
ROWS = [(path, name, row) for path, (_, rows) in ENDPOINTS.items() for name, row in rows.items()]


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_parameter_of_the_schemas_has_a_row(path: str) -> None:
    model, rows = ENDPOINTS[path]
    assert set(model.model_fields) == set(rows) | set(IN_THE_LOG.get(path, {})) | NO_EFFECT.get(path, set())


async def send(path: str, fields: dict[str, Any]) -> Result:
    engine = FakeEngine(saying("abc"))
    state = state_around(engine)
    state.tool_emulation = True
    if path == TOKENIZE:
        assert state.texts is not None
        template = ChatTemplate(TEMPLATE, tokenizer())
        state.texts = replace(state.texts, chat_template=template)
    async with client_of(state) as client:
        return Result(await client.post(path, json=fields), engine.submitted)


@pytest.mark.anyio
@pytest.mark.parametrize(("path", "name", "row"), ROWS, ids=lambda value: value if isinstance(value, str) else "")
async def test_a_parameter_is_not_ignored(path: str, name: str, row: Row) -> None:
    start = {**BASE[path], **row.start}
    before, after = await send(path, start), await send(path, {**start, name: row.value})
    assert before.http.status_code in (200, 400), before.http.text
    assert row.check(before, after), (before.http.text, after.http.text, before.submitted, after.submitted)


@pytest.mark.anyio
@pytest.mark.parametrize("path", IN_THE_LOG)
async def test_the_user_is_named_in_the_log(path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    await send(path, {**BASE[path], **IN_THE_LOG[path]})
    assert any("somebody" in str(vars(record)) for record in caplog.records)
