"""server/schemas/validation.py: every body is a request or a 400, and unknown names are reported."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import ApiError
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
from tests.support.requests import CHAT, PROMPT


def error_of(model: type[RequestModel], body: dict[str, JsonValue]) -> ApiError | None:
    try:
        validate(model, body)
    except ApiError as error:
        return error
    return None


def test_nulls_and_values_without_effect_are_accepted() -> None:
    nulls: dict[str, JsonValue] = dict.fromkeys(("temperature", "max_tokens", "stop", "tools", "user", "logit_bias"))
    idle: dict[str, JsonValue] = {"tool_choice": "none", "best_of": 1, "expert_usage": False, "top_logprobs": 0}
    chat = validate(ChatCompletionRequest, {**CHAT, **nulls, **idle})
    assert (chat.temperature, chat.completion_limit, chat.stop) == (None, None, [])
    assert validate(CompletionRequest, {**PROMPT, "max_tokens": None, "suffix": None}).max_tokens == 16
    assert validate(CompletionRequest, {**PROMPT, "max_tokens": 0, "echo": True}).max_tokens == 0


def test_unknown_fields_are_named_unless_their_names_are_unfit_for_a_header() -> None:
    body: dict[str, JsonValue] = {**CHAT, "temprature": 1, "x\r\ny": 2, "\u00e4": 3, "tools": []}
    assert unknown_fields(ChatCompletionRequest, body | {"metadata": None}) == ["?", "temprature"]


@given(st.dictionaries(st.sampled_from(sorted({*ChatCompletionRequest.model_fields, "prompt", "tools"})), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))))  # fmt: skip
@settings(deadline=None)
def test_any_body_is_a_request_or_a_400_that_does_not_repeat_it(body: dict[str, JsonValue]) -> None:
    marked = {**body, "user": {"secret-marker": "secret-marker"}}
    for model in (CompletionRequest, ChatCompletionRequest, TokenizeRequest, DetokenizeRequest):
        for candidate in (body, marked, {**PROMPT, **CHAT, **body}):
            error = error_of(model, candidate)
            assert error is None or (error.status == 400 and "secret-marker" not in error.message)


@pytest.mark.parametrize(
    ("model", "fields", "hint"),
    [
        (CompletionRequest, {"logit_bias": {"hello": -100}}, "keys are token ids"),
        (ChatCompletionRequest, {"logit_bias": [[5, 1]]}, "keys are token ids"),
        (CompletionRequest, {"stop": [5, 6]}, "'stop_token_ids'"),
        (ChatCompletionRequest, {"logprobs": 5}, "'top_logprobs'"),
        (ChatCompletionRequest, {"functions": [{"name": "f"}]}, "Send 'tools' instead"),
        (ChatCompletionRequest, {"chat_template": "x"}, "--chat-template"),
        (TokenizeRequest, {"chat_template": "x"}, "--chat-template"),
        (TokenizeRequest, {"functions": [{"name": "f"}]}, "Send 'tools' instead"),
    ],
    ids=str,
)
def test_a_form_of_another_api_gets_a_hint(model: type[RequestModel], fields: dict[str, JsonValue], hint: str) -> None:
    with pytest.raises(ApiError) as caught:
        validate(model, {**(PROMPT if model is CompletionRequest else CHAT), **fields})
    assert hint in caught.value.message


def test_a_value_out_of_range_gets_no_hint() -> None:
    with pytest.raises(ApiError, match=r"at most 100\.0\.$"):
        validate(CompletionRequest, {**PROMPT, "logit_bias": {"5": 101}})
