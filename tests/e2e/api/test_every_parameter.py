"""Every parameter of completions and chat has an effect: each row fails if the parameter is ignored.

A row has the base fields, the parameter's value, and a check of the replies without and with it. A parameter with
several kinds of values has a row for each kind, named after a dot. The rows are compared with the schemas: a new
parameter needs a row.
"""

import dataclasses
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from engine.types import Request
from server.chat.template import ChatTemplate
from server.schemas import ChatCompletionRequest, CompletionRequest
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.running import MODEL, RunningServer
from tests.support.servers.serving import MODEL as FAKE_MODEL
from tests.support.servers.serving import client_of, saying, state_around, tokenizer

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
EOS = "2"
ALWAYS_EOS = {"logit_bias": {EOS: 100}}
NO_EOS = {"logit_bias": {EOS: -100}}
CHANCE = {"temperature": 1.5, "seed": 5}
LONG = {"max_tokens": 48}
BASE: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"model": MODEL, "prompt": "It was not in her power to", "max_tokens": 12},
    CHAT: {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me of the sea."}],
        "max_tokens": 12,
        **NO_EOS,
    },
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
SCHEMA = {"type": "object", "properties": {"a": DIGIT}, "required": ["a"], "additionalProperties": False}


@dataclass
class Reply:
    """The reply to a request."""

    http: httpx.Response
    body: dict[str, Any] = field(default_factory=dict)  # of a full reply
    events: list[dict[str, Any]] = field(default_factory=list)  # of a stream

    @property
    def choice(self) -> dict[str, Any]:
        choice: dict[str, Any] = self.body["choices"][0]
        return choice

    @property
    def text(self) -> str:
        return str(self.choice["text"] if "text" in self.choice else self.choice["message"]["content"])

    @property
    def ids(self) -> list[int]:
        return list(self.choice["token_ids"])

    @property
    def usage(self) -> dict[str, Any]:
        usage: dict[str, Any] = self.body["usage"]
        return usage

    @property
    def prompt_ids(self) -> list[int]:
        return list(self.choice["prompt_token_ids"] if "text" in self.choice else self.body["prompt_token_ids"])


Check = Callable[[Reply, Reply], bool]


@dataclass(frozen=True)
class Row:
    """`value`: the value, or a function that makes it from the reply without the parameter. `paths`: its endpoints."""

    value: Any
    check: Check
    start: dict[str, Any] = field(default_factory=dict)
    paths: tuple[str, ...] = (COMPLETIONS, CHAT)


def differs(before: Reply, after: Reply) -> bool:
    return before.ids != after.ids


def is_greedy(before: Reply, after: Reply) -> bool:
    """Check that sampling has become greedy: each token has the highest logprob at its position."""
    entries = after.choice["logprobs"]
    if "content" in entries:
        tops = [[top["logprob"] for top in e["top_logprobs"] if top["token"] != "</s>"] for e in entries["content"]]
        is_top = [e["logprob"] == top[0] for e, top in zip(entries["content"], tops, strict=True)]
    else:
        tops = map(max, (top.values() for top in entries["top_logprobs"]))
        is_top = [p == top for p, top in zip(entries["token_logprobs"], tops, strict=True)]
    return before.ids != after.ids and all(is_top)


def refused(status: int, param: str | None) -> Check:
    def check(_: Reply, after: Reply) -> bool:
        return after.http.status_code == status and after.http.json()["error"]["param"] == param

    return check


def has_form(pattern: str) -> Check:
    return lambda before, after: not re.fullmatch(pattern, before.text) and bool(re.fullmatch(pattern, after.text))


def a_word_of(reply: Reply) -> str:
    return max(re.findall(r"[A-Za-z]+", reply.text), key=len)


def scores_of(reply: Reply) -> list[Any]:
    """Return the list `prompt_logprobs` of a reply."""
    return list(reply.choice["prompt_logprobs"] if "text" in reply.choice else reply.body["prompt_logprobs"])


COMPLETION_SCORES, CHAT_SCORES = {"logprobs": 1}, {"logprobs": True, "top_logprobs": 1}
SHARED: dict[str, Row] = {
    "model": Row("nope", refused(404, "model")),
    "stream": Row(True, lambda b, a: a.http.headers["content-type"].startswith("text/event-stream") and not b.events),
    "stream_options.continuous_usage_stats": Row(
        {"continuous_usage_stats": True},
        lambda b, a: all(e["usage"]["prompt_tokens"] for e in a.events),
        {"stream": True},
    ),
    "stream_options.include_usage": Row(
        {"include_usage": True},
        lambda b, a: bool(b.events[-1]["choices"]) and not a.events[-1]["choices"] and bool(a.events[-1]["usage"]),
        {"stream": True},
    ),
    "max_tokens": Row(3, lambda b, a: a.usage["completion_tokens"] == 3 != b.usage["completion_tokens"]),
    "min_tokens": Row(8, lambda b, a: len(b.ids) == 1 and len(a.ids) == 9, ALWAYS_EOS),
    "temperature": Row(0, differs, {**CHANCE}),
    "frequency_penalty": Row(2, differs, LONG),
    "presence_penalty": Row(2, differs, LONG),
    "repetition_penalty": Row(2, differs, LONG),
    "repeat_penalty": Row(2, differs, LONG),
    "stop": Row(a_word_of, lambda b, a: b.text.startswith(a.text) and a_word_of(b) not in a.text),
    "stop_token_ids": Row(lambda b: [b.ids[4]], lambda b, a: a.ids == b.ids[: b.ids.index(b.ids[4]) + 1]),
    "include_stop_str_in_output": Row(True, lambda b, a: a.text == b.text + b.choice["stop_reason"], {"stop": "e"}),
    "ignore_eos": Row(True, lambda b, a: len(b.ids) == 1 and len(a.ids) == 12, ALWAYS_EOS),
    "seed": Row(6, lambda b, a: differs(b, a) and (b.body["seed"], a.body["seed"]) == (5, 6), CHANCE),
    "random_seed": Row(6, lambda b, a: differs(b, a) and a.body["seed"] == 6, {"temperature": 1.5}),
    "n": Row(3, lambda b, a: len(a.body["choices"]) == 3),
    "logit_bias": Row({"300": 100}, lambda b, a: set(a.ids) == {300}),
    "allowed_token_ids": Row([300, 301], lambda b, a: set(a.ids) <= {300, 301}),
    "bad_words": Row(lambda b: [a_word_of(b)], lambda b, a: a_word_of(b) not in a.text and differs(b, a)),
    "skip_special_tokens": Row(
        False, lambda b, a: "</s>" in a.text and "</s>" not in b.text, {**ALWAYS_EOS, "ignore_eos": True}
    ),
    "return_token_ids": Row(False, lambda b, a: "token_ids" in b.choice and "token_ids" not in a.choice),
    "truncate_prompt_tokens": Row(3, lambda b, a: a.prompt_ids == b.prompt_ids[-3:]),
    "truncation_side": Row(
        "right",
        lambda b, a: len(a.prompt_ids) == 3 and a.prompt_ids != b.prompt_ids,
        {"truncate_prompt_tokens": 3},
    ),
    "timeout_s": Row(1e-6, refused(504, "timeout_s")),
    "queue_timeout_s": Row(1e-6, refused(503, "queue_timeout_s")),
    "response_format.json_object": Row({"type": "json_object"}, has_form(r"\{.*")),
    "response_format.json_schema": Row(
        {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}, has_form(r'\{"a":\d\}')
    ),
    "prompt_logprobs": Row(
        2,
        lambda b, a: len(scores_of(a)) == len(a.prompt_ids) and all(len(s) >= 2 for s in scores_of(a)[1:]),
    ),
    "guided_json": Row(SCHEMA, has_form(r'\{"a":[0-9]\}')),
    "guided_regex": Row("[0-9]{3}", has_form("[0-9]{3}")),
    "guided_choice": Row(["yes", "no"], has_form("yes|no")),
    "json_schema": Row(SCHEMA, has_form(r'\{"a":[0-9]\}')),
    "regex": Row("[0-9]{3}", has_form("[0-9]{3}")),
    "grammar": Row('root ::= "a"{5,5}', has_form("aaaaa")),
    "ebnf": Row('root ::= "yes" | "no"', has_form("yes|no")),
    "guided_grammar": Row('root ::= "yes" | "no"', has_form("yes|no")),
    "structured_outputs.json": Row({"json": SCHEMA}, has_form(r'\{"a":\d\}')),
    "structured_outputs.regex": Row({"regex": "[0-9]{5}"}, has_form("[0-9]{5}")),
    "structured_outputs.choice": Row({"choice": ["yes", "no"]}, has_form("yes|no")),
    "structured_outputs.grammar": Row({"grammar": 'start: ("x" | "y") "z"'}, has_form("[xy]z")),
    "experts_per_token": Row(1, lambda b, a: b.choice["logprobs"] != a.choice["logprobs"]),
    "expert_mask": Row([[True, True, *[False] * 6]] * 99, lambda b, a: b.choice["logprobs"] != a.choice["logprobs"]),
    "expert_usage": Row(True, lambda b, a: "expert_tokens" in a.usage and "expert_tokens" not in b.usage),
    "expert_routing": Row(True, lambda b, a: len(a.choice["expert_routing"]) == len(a.ids) - 1),
    "gate_logits": Row(
        True, lambda b, a: len(a.choice["gate_logits"]) == len(a.choice["expert_weights"]) == len(a.ids) - 1
    ),
}
LIKELIEST: dict[str, Any] = {"top_p": 1e-9, "top_k": 1, "min_p": 1.0}
COMPLETION_ROWS: dict[str, Row] = {
    "prompt": Row("And God said", lambda b, a: b.prompt_ids != a.prompt_ids),
    "prompt.texts": Row(["And God said", "a"], lambda b, a: len(a.body["choices"]) == 2),
    "prompt.ids": Row([1, 500, 501], lambda b, a: a.prompt_ids == [1, 500, 501]),
    "prompt.lists_of_ids": Row(
        [[1, 500], [1, 501]], lambda b, a: [c["prompt_token_ids"] for c in a.body["choices"]] == [[1, 500], [1, 501]]
    ),
    "max_tokens.scoring": Row(
        0, lambda b, a: not a.ids and len(a.choice["logprobs"]["tokens"]) == len(a.prompt_ids), {"echo": True}
    ),
    "logprobs": Row(2, lambda b, a: min(map(len, a.choice["logprobs"]["top_logprobs"])) >= 2),
    "echo": Row(True, lambda b, a: a.text == BASE[COMPLETIONS]["prompt"] + b.text),
    "best_of": Row(2, refused(400, "best_of")),
    "add_special_tokens": Row(False, lambda b, a: a.prompt_ids == b.prompt_ids[1:]),
    **{name: Row(value, is_greedy, CHANCE) for name, value in LIKELIEST.items()},
}
CHAT_ROWS: dict[str, Row] = {
    "messages": Row([{"role": "user", "content": "Hello"}], lambda b, a: b.prompt_ids != a.prompt_ids),
    "messages.parts": Row(
        [{"role": "user", "content": [{"type": "text", "text": "Hello"}] * 2}],
        lambda b, a: len(a.prompt_ids) > len(b.prompt_ids),
        {"messages": [{"role": "user", "content": "Hello"}]},
    ),
    "max_completion_tokens": Row(
        3,
        lambda b, a: (b.usage["completion_tokens"], a.usage["completion_tokens"]) == (9, 3),
        {"max_tokens": None, "max_completion_tokens": 9},
    ),
    "logprobs": Row(
        False,
        lambda b, a: bool(b.choice["logprobs"]["content"]) and a.choice["logprobs"] is None,
        {"top_logprobs": None},
    ),
    "prediction": Row(
        {"type": "content", "content": "The sea."},
        lambda b, a: b.ids == a.ids and "completion_tokens_details" in a.usage and len(a.usage) == len(b.usage) + 1,
    ),
    "top_logprobs": Row(3, lambda b, a: {len(e["top_logprobs"]) for e in a.choice["logprobs"]["content"]} == {3}),
    "tools": Row(
        [TOOL],
        lambda b, a: b.http.status_code == 400 and a.choice["message"]["tool_calls"][0]["function"]["name"] == "f",
        {"tool_choice": {"type": "function", "function": {"name": "f"}}, "max_tokens": 64},
    ),
    "tool_choice": Row(
        "required", lambda b, a: bool(a.choice["message"]["tool_calls"]), {"tools": [TOOL], "max_tokens": 64}
    ),
    **{name: Row(value, is_greedy, {**CHANCE, "top_logprobs": 2}) for name, value in LIKELIEST.items()},
}
# Parameters without an effect on the reply: other tests check the engine's request, the prompt or the log.
ELSEWHERE = {
    "parallel_tool_calls",
    "priority",
    "cache_salt",
    "user",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
}
ROWS = [
    *((path, name, row) for name, row in SHARED.items() for path in row.paths),
    *((COMPLETIONS, name, row) for name, row in COMPLETION_ROWS.items()),
    *((CHAT, name, row) for name, row in CHAT_ROWS.items()),
]


def test_every_parameter_of_the_schemas_has_a_row() -> None:
    for model, rows in ((CompletionRequest, COMPLETION_ROWS), (ChatCompletionRequest, CHAT_ROWS)):
        assert set(model.model_fields) - ELSEWHERE == {name.partition(".")[0] for name in (*SHARED, *rows)}


def send(server: RunningServer, path: str, fields: dict[str, Any]) -> Reply:
    response = httpx.post(server.url + path, json=fields, timeout=120)
    if response.headers["content-type"].startswith("text/event-stream"):
        payloads = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: {")]
        return Reply(response, events=list(map(json.loads, payloads)))
    return Reply(response, response.json())


@pytest.mark.parametrize(("path", "name", "row"), ROWS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_parameter_is_not_ignored(server: RunningServer, path: str, name: str, row: Row) -> None:
    scores = COMPLETION_SCORES if path == COMPLETIONS else CHAT_SCORES
    start = {**BASE[path], "temperature": 0, "return_token_ids": True, **scores, **row.start}
    before = send(server, path, start)
    value = row.value(before) if callable(row.value) else row.value
    if name == "expert_mask":
        value = value[: len(httpx.get(server.url + "/experts").json()["layers"])]
    after = send(server, path, {**start, name.partition(".")[0]: value})
    assert row.check(before, after), (before.body or before.events[-1:], after.body or after.events[-1:])


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_salt_keeps_cached_blocks_apart(server: RunningServer, path: str) -> None:
    words = {COMPLETIONS: {"prompt": "salt " * 50}, CHAT: {"messages": [{"role": "user", "content": "salt " * 50}]}}[
        path
    ]
    fields = {**BASE[path], **words, "max_tokens": 1, "cache_salt": f"first {path}"}
    cached = [
        send(server, path, {**fields, "cache_salt": salt}).usage["prompt_tokens_details"]["cached_tokens"]
        for salt in (f"first {path}", f"first {path}", f"other {path}")
    ]
    assert cached[0] == cached[2] == 0 < cached[1]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_the_user_is_named_in_the_log(server: RunningServer, path: str) -> None:
    send(server, path, {**BASE[path], "max_tokens": 1, "user": f"somebody{path}"})
    deadline = time.monotonic() + 60
    while f"user=somebody{path}" not in server.log.read_text():  # a thread writes the line behind the reply
        assert time.monotonic() < deadline


TEMPLATE = (
    "{{ messages[0]['content'] }}{% if add_generation_prompt %} GO{% endif %}"
    "{{ date_string or reasoning_effort or '' }}{% if enable_thinking %} hm{% endif %}"
    "{% if messages[1] is defined %}{{ messages[1]['content'] }} over{% endif %}"
)
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


async def submitted(fields: dict[str, Any]) -> Request:
    """Return the engine's request for a chat, with a template that renders its variables."""
    engine = FakeEngine(saying("a"))
    state = state_around(engine)
    assert state.texts is not None
    state.texts = dataclasses.replace(state.texts, chat_template=ChatTemplate(TEMPLATE, tokenizer()))
    async with client_of(state) as client:
        response = await client.post(CHAT, json={"model": FAKE_MODEL, "messages": TURNS[:1], **fields})
        assert response.status_code == 200, response.text
    return engine.submitted[0]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "rendered"),
    [
        ({}, "a GO"),
        ({"add_generation_prompt": False}, "a"),
        ({"chat_template_kwargs": {"date_string": " today"}}, "a GO today"),
        ({"chat_template_kwargs": {"reasoning_effort": " low"}}, "a GO low"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "a GO hm"),
        ({"messages": TURNS}, "a GOb over"),
        ({"messages": TURNS, "continue_final_message": True}, "ab"),
    ],
    ids=str,
)
async def test_the_templates_arguments_reach_the_prompt(fields: dict[str, Any], rendered: str) -> None:
    request = await submitted(fields)
    assert tokenizer().decode(request.prompt_token_ids) == rendered


@pytest.mark.anyio
async def test_parallel_tool_calls_change_the_grammar() -> None:
    fields = {"tools": [TOOL], "tool_choice": "required"}
    several, one = [await submitted({**fields, "parallel_tool_calls": parallel}) for parallel in (True, False)]
    assert several.grammar is not None and one.grammar is not None
    assert several.grammar != one.grammar


@pytest.mark.anyio
async def test_the_priority_reaches_the_scheduler() -> None:
    assert (await submitted({"priority": -7})).priority == -7
    assert (await submitted({})).priority == 0
