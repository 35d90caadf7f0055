"""server/schemas/chat.py: one 400 per bad field."""

import pytest

from server.schemas import (
    ChatCompletionRequest,
)
from server.strict_json import JsonValue
from tests.support.requests import ABOVE, CHAT, refusal


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
