"""No constraint on the output is dropped with a header only: each spelling of other servers is followed or a 400."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from server.chat.template import ChatTemplate
from server.errors import ApiError
from server.generation.generation_defaults import GenerationDefaults
from server.generation.state import ServerState, TextFrontend
from server.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    MessagesRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    RerankRequest,
    ResponsesRequest,
    ScoreRequest,
)
from server.schemas.validation import RequestModel, unknown_fields, validate
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.inline_sandbox import InlineSandbox
from tests.support.servers.serving import MODEL, client_of, saying, state_around, tokenizer

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
    MESSAGES: {"output_config", "output_format"},
}
OWN[CHAT] = OWN[COMPLETIONS]


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
        (MESSAGES, "response_format", OPENAI, "output_config.format"),
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


MODELS: dict[str, type[RequestModel]] = {
    COMPLETIONS: CompletionRequest,
    CHAT: ChatCompletionRequest,
    RESPONSES: ResponsesRequest,
    MESSAGES: MessagesRequest,
}
# Limits, stops, bans and objects of options under the names of other APIs, each with a value that constrains.
OTHER_NAMES: list[tuple[str, Any]] = [
    *[("max_tokens", 3), ("max_completion_tokens", 3), ("max_output_tokens", 3), ("stop", ["x"])],  # OpenAI
    *[("logit_bias", {"5": 1}), ("functions", [FUNCTION]), ("max_tool_calls", 1), ("parallel_tool_calls", False)],
    *[("stop_sequences", ["x"]), ("max_tokens_to_sample", 3), ("disable_parallel_tool_use", True)],  # Anthropic
    *[("min_tokens", 3), ("stop_token_ids", [5]), ("bad_words", ["x"]), ("allowed_token_ids", [5])],  # vLLM
    *[("logits_processors", ["x"]), ("ignore_eos", True)],
    *[("custom_logit_processor", "x"), ("sampling_params", {"json_schema": "{}"})],  # SGLang
    *[("n_predict", 3), ("t_max_predict_ms", 9)],  # llama.cpp
    *[("options", {"num_predict": 3}), ("options", {"top_k": 3, "stop": ["x"]}), ("num_predict", 3)],  # Ollama
    *[("parameters", {"grammar": {"type": "json", "value": SCHEMA}}), ("max_new_tokens", 3)],  # TGI
    *[("max_length", 30), ("min_length", 3), ("min_new_tokens", 3), ("bad_words_ids", [[5]])],  # transformers
    *[("suppress_tokens", [5]), ("force_words_ids", [[5]]), ("stop_strings", ["x"]), ("max_time", 3.0)],
    *[("begin_suppress_tokens", [5]), ("forced_bos_token_id", 5), ("generation_config", {"max_new_tokens": 3})],
    *[("stop_sequence", ["x"]), ("banned_tokens", ["x"]), ("stop_words", ["x"])],  # KoboldCpp, TensorRT-LLM
    *[("banned_strings", ["x"]), ("allowed_tokens", [5]), ("regex_pattern", "a"), ("grammar_string", GBNF)],  # TabbyAPI
    *[("custom_token_bans", "5"), ("ban_eos_token", True), ("stopping_strings", ["x"])],  # text-generation-webui
    *[("strict_tools", True), ("jsonschema", SCHEMA), ("max_gen_len", 3)],  # Cohere, Llama
    *[("generationConfig", {"responseSchema": SCHEMA}), ("generationConfig", {"maxOutputTokens": 3})],  # Gemini
    *[("toolConfig", {"functionCallingConfig": {"mode": "ANY"}}), ("inferenceConfig", {"maxTokens": 3})],  # Bedrock
    *[("responseFormat", OPENAI), ("toolChoice", "required"), ("structuredOutputs", {"json": SCHEMA})],  # AI SDK
    *[("output_schema", SCHEMA), ("structured_output", SCHEMA), ("schema", SCHEMA), ("text_format", SCHEMA)],
    *[("lora", [{"id": 0, "scale": 1.0}]), ("lora_path", "x"), ("adapter_id", "x")],  # llama.cpp, SGLang, TGI
    *[("extra_body", {"guided_json": SCHEMA}), ("extra_body", {"stop": ["x"]})],  # a client's argument, sent as a field
]


def camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


def outcome(path: str, name: str, value: Any) -> str:
    """Validate a body with a field; return "followed", "ignored" or the refused field."""
    body = {**BASE[path], name: value}
    try:
        validate(MODELS[path], body)
    except ApiError as error:
        return error.param or "?"
    return "ignored" if unknown_fields(MODELS[path], body) else "followed"


@pytest.mark.parametrize("path", BASE)
def test_no_endpoint_ignores_another_apis_constraint(path: str) -> None:
    own = MODELS[path].model_fields
    wrong = {}
    for name, value in [*SPELLINGS, *OTHER_NAMES]:
        if name == "text":  # an object of Responses, which constrains by one of its members
            continue
        for spelled in (name, camel_case(name), name.upper(), name.replace("_", "-")):
            found = outcome(path, spelled, value)
            if found != spelled and not (spelled in own and (found == "followed" or found.startswith(spelled))):
                wrong[spelled] = found
    assert wrong == {}


@pytest.mark.parametrize(
    ("path", "name", "value", "hint"),
    [
        (CHAT, "max_new_tokens", 3, "Send 'max_tokens' instead."),
        (CHAT, "stopSequences", ["x"], "Send 'stop' instead."),
        (
            COMPLETIONS,
            "extra_body",
            {"top_k": 3, "guided_json": SCHEMA},
            "Send 'guided_json' at the top of the body instead.",
        ),
        (CHAT, "extra_body", {"max_new_tokens": 3}, "Send 'max_tokens' at the top of the body instead."),
        (CHAT, "extra_body", {"options": {"num_predict": 3}}, "Send 'max_tokens' at the top of the body instead."),
        (RESPONSES, "extra_body", {"parameters": {"grammar": GBNF}}, "Send 'text.format' instead."),
        (MESSAGES, "parameters", {"response_format": OPENAI}, "Send 'output_config.format' instead."),
        (RESPONSES, "options", {"stop": ["x"]}, "This endpoint has no such constraint."),
        (CHAT, "lora_path", "/adapters/sql", "Send 'model' instead."),
        (COMPLETIONS, "n_predict", -1, "Send 'max_tokens' instead."),  # else 16 tokens, the default
        (RESPONSES, "max_tokens", 3, "Send 'max_output_tokens' instead."),
        (RESPONSES, "stop", ["x"], "This endpoint has no such constraint."),
        (MESSAGES, "stop", ["x"], "Send 'stop_sequences' instead."),
        (MESSAGES, "responseFormat", OPENAI, "Send 'output_config.format' instead."),
    ],
)
def test_the_error_for_another_apis_name_says_what_to_send(path: str, name: str, value: Any, hint: str) -> None:
    with pytest.raises(ApiError) as caught:
        validate(MODELS[path], {**BASE[path], name: value})
    assert caught.value.message == f"'{name}' is not supported here. {hint}"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (COMPLETIONS, {"max_tokens": 5, "max_completion_tokens": 5}),  # guidellm sends both
        (COMPLETIONS, {"max_tokens": 5, "n_predict": -1}),
        (COMPLETIONS, {"n_predict": None}),
        (CHAT, {"max_new_tokens": None, "n_predict": -1, "stop_sequences": [], "extra_body": {}}),
        (CHAT, {"options": {"num_ctx": 4096}, "extra_body": {"top_k": 3}, "responseFormat": {"type": "text"}}),
        (CHAT, {"extra_body": {"options": {"num_ctx": 4096}, "top_k": 3}}),
        (RESPONSES, {"stop": None, "logit_bias": {}, "min_tokens": 0, "tool_config": {}}),
        (CHAT, {"lora": [], "adapter_id": None, "model": "sql", "lora_path": "sql"}),
        (MESSAGES, {"max_output_tokens": 9, "parallel_tool_calls": True, "functions": []}),
    ],
)
def test_values_that_ask_for_nothing_or_repeat_the_own_field_are_accepted(path: str, fields: dict[str, Any]) -> None:
    validate(MODELS[path], {**BASE[path], **fields})


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        *[
            (RESPONSES, {"text": {name: SCHEMA}}, f"text.{name}")
            for name in ("json_schema", "schema", "response_format")
        ],
        *[(RESPONSES, {"text": {name: GBNF}}, f"text.{name}") for name in ("regex", "grammar")],
        *[(MESSAGES, {"output_config": {name: SCHEMA}}, f"output_config.{name}") for name in ("schema", "jsonSchema")],
        *[
            (
                CHAT,
                {"tools": [{"type": "function", "function": {"name": "f", name: SCHEMA}}]},
                f"tools[].function.{name}",
            )
            for name in ("input_schema", "inputSchema", "parametersJsonSchema")
        ],
        (RESPONSES, {"tools": [{"type": "function", "name": "f", "input_schema": SCHEMA}]}, "tools[].input_schema"),
        (
            CHAT,
            {
                "tools": [TOOL],
                "tool_choice": {"type": "function", "function": {"name": "f"}, "disable_parallel_tool_use": True},
            },
            "tool_choice.disable_parallel_tool_use",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_constraint_inside_an_object_under_another_apis_name_is_refused(
    path: str, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        validate(MODELS[path], {**BASE[path], **fields})
    assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (RESPONSES, {"text": {"verbosity": "low"}}),
        (MESSAGES, {"output_config": {"effort": "high"}}),
        (CHAT, {"tools": [{"type": "function", "function": {**FUNCTION, "output_schema": SCHEMA}}]}),
        (RESPONSES, {"tools": [{"type": "function", **FUNCTION, "output_schema": SCHEMA, "input_schema": SCHEMA}]}),
    ],
)
def test_members_that_constrain_nothing_are_accepted(path: str, fields: dict[str, Any]) -> None:
    validate(MODELS[path], {**BASE[path], **fields})


EMBEDDED: list[tuple[type[RequestModel], dict[str, Any]]] = [
    (EmbeddingRequest, {"model": MODEL, "input": "a"}),
    (RerankRequest, {"model": MODEL, "query": "a", "documents": ["b"]}),
    (ScoreRequest, {"model": MODEL, "text_1": "a", "text_2": "b"}),
    (OllamaEmbedRequest, {"model": MODEL, "input": "a"}),
    (OllamaEmbeddingsRequest, {"model": MODEL, "prompt": "a"}),
]


@pytest.mark.parametrize(("model", "body"), EMBEDDED)
def test_texts_are_not_embedded_without_the_adapter_that_another_apis_name_asks_for(
    model: type[RequestModel], body: dict[str, Any]
) -> None:
    for name, value in (("lora", [{"id": 0, "scale": 1.0}]), ("lora_path", "x"), ("adapterId", "x")):
        with pytest.raises(ApiError) as caught:
            validate(model, {**body, name: value})
        assert caught.value.message == f"'{name}' is not supported here. Send 'model' instead."
        with pytest.raises(ApiError) as caught:
            validate(model, {**body, "extra_body": {"max_tokens": 3, name: value}})
        assert caught.value.message.endswith("Send 'model' at the top of the body instead.")
    validate(model, {**body, "lora": [], "adapter_id": None, "lora_path": MODEL})


@pytest.mark.parametrize(("model", "body"), EMBEDDED)
def test_constraints_on_an_output_mean_nothing_where_none_is_written(
    model: type[RequestModel], body: dict[str, Any]
) -> None:
    others = {
        "max_tokens": 3,
        "stop": ["x"],
        "response_format": OPENAI,
        "extra_body": {"max_tokens": 3},
        "n_predict": -1,
    }
    validate(model, {**body, **others})
    assert unknown_fields(model, {**body, **others}) == sorted(others)
