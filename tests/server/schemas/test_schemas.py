"""server/schemas.py, validation.py and sampling.py: each bad field its own 400, each good one its place."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import ApiError
from server.generation.sampling_params import (
    GenerationDefaults,
    check_token_ids,
    load_generation_defaults,
    sampling_params,
)
from server.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    unknown_fields,
    validate,
)
from server.schemas.validation import RequestModel
from server.strict_json import JsonValue
from server.tokenizer.tokenizer import TokenizerError

PROMPT: dict[str, JsonValue] = {"model": "m", "prompt": "x"}
CHAT: dict[str, JsonValue] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
ABOVE, BELOW = "integer_above_max_value", "integer_below_min_value"


def refusal(model: type[RequestModel], body: dict[str, JsonValue]) -> tuple[str | None, str | None]:
    with pytest.raises(ApiError) as caught:
        validate(model, body)
    assert caught.value.status == 400
    return caught.value.param, caught.value.code


def error_of(model: type[RequestModel], body: dict[str, JsonValue]) -> ApiError | None:
    try:
        validate(model, body)
    except ApiError as error:
        return error
    return None


# Fields of both endpoints: value, code.
SHARED: list[tuple[str, JsonValue, str]] = [
    *[("model", value, "missing_required_parameter") for value in (None, "")],
    ("model", 5, "invalid_type"),
    ("model", "m" * 1000, "string_above_max_length"),
    ("n", 0, BELOW),
    ("n", -1, BELOW),
    ("n", 9, ABOVE),
    *[("n", value, "invalid_type") for value in (True, 1.0, "3", [])],
    ("temperature", -0.1, "decimal_below_min_value"),
    ("temperature", 2.01, "decimal_above_max_value"),
    ("temperature", True, "invalid_type"),
    ("temperature", "1", "invalid_type"),
    ("top_p", 0, "decimal_below_min_value"),
    ("top_p", 1.0001, "decimal_above_max_value"),
    ("top_k", -2, BELOW),
    ("top_k", 1.5, "invalid_type"),
    ("min_p", 1.01, "decimal_above_max_value"),
    ("frequency_penalty", 2.01, "decimal_above_max_value"),
    ("presence_penalty", -2.01, "decimal_below_min_value"),
    ("repetition_penalty", 0, "decimal_below_min_value"),
    ("repetition_penalty", 2.01, "decimal_above_max_value"),
    ("max_tokens", 0, BELOW),
    ("max_tokens", -1, BELOW),
    ("max_tokens", 1.0, "invalid_type"),
    ("min_tokens", -1, BELOW),
    ("seed", 1.5, "invalid_type"),
    ("seed", "a", "invalid_type"),
    ("stop", "", "empty_string"),
    ("stop", ["a", ""], "empty_string"),
    ("stop", ["a"] * 5, "array_above_max_length"),
    ("stop", "a" * 257, "string_above_max_length"),
    *[("stop", value, "invalid_type") for value in (5, [None], [["a"]])],
    ("stop_token_ids", [1] * 10_000, "array_above_max_length"),
    ("stop_token_ids", ["1"], "invalid_type"),
    ("logit_bias", {"1": 101}, "decimal_above_max_value"),
    ("logit_bias", {"1": None}, "invalid_type"),
    *[("logit_bias", {key: 1}, "invalid_value") for key in ("a", "01", "-1", "1.0", " 1", "\u0661")],
    ("allowed_token_ids", [], "empty_array"),
    *[("stream", value, "invalid_type") for value in ("yes", 1, None)],
    ("stream_options", {}, "invalid_value"),
    ("priority", 2**40, ABOVE),
    ("user", "a" * 1_000_000, "string_above_max_length"),
    ("bad_words", [""], "empty_string"),
    ("bad_words", ["x"] * 65, "array_above_max_length"),
    ("prompt_embeds", "x", "unsupported_parameter"),
    ("prompt_logprobs", 1, "unsupported_parameter"),
    ("experts_per_token", 0, BELOW),
    ("experts_per_token", 1.0, "invalid_type"),
    ("experts_per_token", True, "invalid_type"),
    ("expert_mask", [True], "invalid_type"),
    ("expert_mask", [[1, 0]], "invalid_type"),
    ("expert_usage", 1, "invalid_type"),
    ("expert_routing", "yes", "invalid_type"),
    ("timeout_s", 0, "decimal_below_min_value"),
    ("queue_timeout_s", -1, "decimal_below_min_value"),
    ("timeout_s", "1", "invalid_type"),
    ("truncate_prompt_tokens", 0, BELOW),
    ("best_of", 20, "unsupported_parameter"),
]


@pytest.mark.parametrize(("field", "value", "code"), SHARED, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("stream", [False, True])
def test_each_bad_parameter_is_a_400_that_names_it(field: str, value: JsonValue, code: str, stream: bool) -> None:
    for model, body in ((CompletionRequest, PROMPT), (ChatCompletionRequest, CHAT)):
        if stream and field in {"stream", "stream_options"}:
            continue
        assert refusal(model, {**body, "stream": stream, field: value}) == (field, code)


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": ""}, "prompt", "empty_string"),
        ({"prompt": []}, "prompt", "empty_array"),
        ({"prompt": [""]}, "prompt", "empty_string"),
        ({"prompt": [[]]}, "prompt", "empty_array"),
        ({"prompt": ["a"] * 129}, "prompt", "array_above_max_length"),
        *[
            ({"prompt": p}, "prompt", "invalid_type")
            for p in (5, {}, [1, "a"], ["a", [1]], [[[1]]], [True], [1.0], [None])
        ],
        ({"logprobs": 21}, "logprobs", ABOVE),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"min_tokens": 17}, "min_tokens", "invalid_value"),
        ({"suffix": "a"}, "suffix", "unsupported_parameter"),
        ({"n": 2, "best_of": 1}, "best_of", "unsupported_parameter"),
        ({"n": 2, "best_of": 2, "stream": True}, "best_of", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
    ],
    ids=str,
)
def test_each_bad_completion_is_a_400(extra: dict[str, JsonValue], param: str, code: str) -> None:
    assert refusal(CompletionRequest, {**PROMPT, **extra}) == (param, code)


@pytest.mark.parametrize(
    ("messages", "param", "code"),
    [
        (None, "messages", "missing_required_parameter"),
        ([], "messages", "empty_array"),
        ({}, "messages", "invalid_type"),
        ([{"role": "user", "content": "a"}] * 10_001, "messages", "array_above_max_length"),
        ([None], "messages[0]", "invalid_type"),
        (["a"], "messages[0]", "invalid_type"),
        ([{"content": "a"}], "messages[0].role", "missing_required_parameter"),
        ([{"role": "user"}], "messages[0].content", "missing_required_parameter"),
        ([{"role": "user", "content": 5}], "messages[0].content", "invalid_type"),
        ([{"role": "user", "content": []}], "messages[0].content", "empty_array"),
        *[([{"role": r, "content": "a"}], "messages[0].role", "invalid_value") for r in ("root", "", "User", "user\0")],
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}],
            "messages[0].content[1].type",
            "unsupported_value",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{}]}],
            "messages[1].tool_calls[0].id",
            "missing_required_parameter",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_each_bad_message_is_a_400_that_says_where(messages: JsonValue, param: str, code: str) -> None:
    assert refusal(ChatCompletionRequest, {**CHAT, "messages": messages}) == (param, code)
    if messages is not None:
        assert refusal(TokenizeRequest, {"messages": messages}) == (param, code)


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", ABOVE),
        ({"logprobs": 5}, "logprobs", "invalid_type"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "invalid_value"),
        ({"max_completion_tokens": 3, "min_tokens": 4}, "min_tokens", "invalid_value"),
        ({"continue_final_message": True}, "continue_final_message", "invalid_value"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"chat_template": "x"}, "chat_template", "unsupported_parameter"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs", "unsupported_parameter"),
    ],
    ids=str,
)
def test_each_bad_chat_is_a_400(extra: dict[str, JsonValue], param: str, code: str) -> None:
    assert refusal(ChatCompletionRequest, {**CHAT, **extra}) == (param, code)


def test_a_prompt_comes_in_four_shapes() -> None:
    shapes: list[tuple[JsonValue, object]] = [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2]], [[1], [2]]),
    ]
    for prompt, expected in shapes:
        assert validate(CompletionRequest, {"model": "m", "prompt": prompt}).prompt == expected


def test_null_and_what_asks_for_nothing_pass() -> None:
    nulls: dict[str, JsonValue] = dict.fromkeys(("temperature", "max_tokens", "stop", "tools", "user", "logit_bias"))
    chat = validate(
        ChatCompletionRequest, {**CHAT, **nulls, "tool_choice": "none", "best_of": 1, "expert_usage": False}
    )
    assert (chat.temperature, chat.completion_limit, chat.stop) == (None, None, [])
    assert validate(CompletionRequest, {**PROMPT, "max_tokens": None, "suffix": None}).max_tokens == 16
    assert validate(CompletionRequest, {**PROMPT, "max_tokens": 0, "echo": True}).max_tokens == 0


def test_text_parts_and_developer_are_understood() -> None:
    parts: JsonValue = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = validate(ChatCompletionRequest, {**CHAT, "messages": [{"role": "developer", "content": parts}]})
    assert (chat.messages[0].text, chat.messages[0].template_role) == ("a\nb", "system")


def test_unknown_fields_are_named_and_never_repeat_what_no_header_may_carry() -> None:
    body: dict[str, JsonValue] = {**CHAT, "temprature": 1, "x\r\ny": 2, "\u00e4": 3, "tools": []}
    assert unknown_fields(ChatCompletionRequest, body) == ["?", "temprature"]


@given(st.dictionaries(st.sampled_from(sorted({*ChatCompletionRequest.model_fields, "prompt", "tools"})), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))))  # fmt: skip
@settings(deadline=None)
def test_whatever_a_client_sends_is_a_request_or_a_400_that_does_not_repeat_it(body: dict[str, JsonValue]) -> None:
    marked = {**body, "user": {"secret-marker": "secret-marker"}}
    for model in (CompletionRequest, ChatCompletionRequest, TokenizeRequest, DetokenizeRequest):
        for candidate in (body, marked, {**PROMPT, **CHAT, **body}):
            error = error_of(model, candidate)
            assert error is None or (error.status == 400 and "secret-marker" not in error.message)


def test_tokenize_takes_a_prompt_or_messages() -> None:
    assert refusal(TokenizeRequest, {}) == ("prompt", "missing_required_parameter")
    assert refusal(TokenizeRequest, {"prompt": "a", "messages": CHAT["messages"]}) == (
        "prompt",
        "missing_required_parameter",
    )
    conversation = validate(TokenizeRequest, {"messages": CHAT["messages"]}).conversation
    assert conversation is not None
    assert conversation.with_generation_prompt
    assert refusal(DetokenizeRequest, {"tokens": [1, -1]}) == ("tokens", BELOW)


def test_every_sampling_field_reaches_the_engine() -> None:
    fields: dict[str, JsonValue] = {
        "min_tokens": 2, "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "frequency_penalty": 0.2,
        "presence_penalty": 0.3, "repetition_penalty": 1.1, "logit_bias": {"5": -3}, "allowed_token_ids": [9, 5, 9],
        "stop_token_ids": [4], "ignore_eos": True, "logprobs": 3, "echo": True,
    }  # fmt: skip
    request = validate(CompletionRequest, {**PROMPT, **fields})
    params = sampling_params(
        request, max_tokens=12, seed=-1, prompt_index=2, choice_index=1, defaults=GenerationDefaults()
    )
    expected = {key: value for key, value in fields.items() if key not in {"logprobs", "echo"}}
    expected |= {"logit_bias": {5: -3.0}, "allowed_token_ids": (5, 9), "stop_token_ids": (4,), "num_logprobs": 3}
    expected |= {"max_tokens": 12, "seed": -1, "prompt_index": 2, "choice_index": 1, "prompt_logprobs": True}
    assert {key: getattr(params, key) for key in expected} == expected


def test_the_checkpoints_defaults_hold_where_the_request_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"temperature": 0.3, "top_k": 9, "repetition_penalty": 1.2}))
    defaults = load_generation_defaults(tmp_path)
    silent, explicit = validate(CompletionRequest, PROMPT), validate(CompletionRequest, {**PROMPT, "temperature": 1})
    numbers = [
        sampling_params(request, max_tokens=1, seed=0, prompt_index=0, choice_index=0, defaults=defaults)
        for request in (silent, explicit)
    ]
    assert [(p.temperature, p.top_k, p.repetition_penalty) for p in numbers] == [(0.3, 9, 1.2), (1.0, 9, 1.2)]
    file.write_text('{"temperature": 17}')
    with pytest.raises(TokenizerError, match="temperature"):
        load_generation_defaults(tmp_path)
    file.unlink()
    assert load_generation_defaults(tmp_path) == GenerationDefaults()


def test_extreme_values_become_harmless_ones() -> None:
    extreme: dict[str, JsonValue] = {"repetition_penalty": 1e-320, "top_k": 2**62}
    request = validate(CompletionRequest, {**PROMPT, **extreme})
    params = sampling_params(
        request, max_tokens=1, seed=0, prompt_index=0, choice_index=0, defaults=GenerationDefaults()
    )
    assert params.repetition_penalty >= 1e-3
    assert params.top_k < 2**31


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"prompt": [100]}, "prompt", ABOVE),
        ({"prompt": [[1], [-1]]}, "prompt", BELOW),
        ({"logit_bias": {"100": 1}}, "logit_bias", ABOVE),
        ({"stop_token_ids": [-1]}, "stop_token_ids", BELOW),
        ({"allowed_token_ids": [100]}, "allowed_token_ids", ABOVE),
        ({"allowed_token_ids": [2, 7], "stop_token_ids": [7], "min_tokens": 1}, "allowed_token_ids", "invalid_value"),
    ],
    ids=str,
)
def test_ids_outside_the_vocabulary_are_refused(extra: dict[str, JsonValue], param: str, code: str) -> None:
    request = validate(CompletionRequest, {**PROMPT, **extra})
    with pytest.raises(ApiError) as caught:
        check_token_ids(request, 100, eos_ids=(2,))
    assert (caught.value.param, caught.value.code) == (param, code)


def test_ids_inside_the_vocabulary_pass() -> None:
    fields: dict[str, JsonValue] = {
        "prompt": [0, 99],
        "logit_bias": {"99": 1},
        "allowed_token_ids": [2],
        "stop_token_ids": [99],
    }
    check_token_ids(validate(CompletionRequest, {**PROMPT, **fields}), 100, eos_ids=(2,))


def test_tokenize_takes_the_tools_that_chat_takes_and_no_others() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [tool, tool]}
    with pytest.raises(ApiError) as refused:
        validate(TokenizeRequest, body)
    assert refused.value.param == "tools[1].function.name"
