"""server/schemas/conversation.py: messages, their parts and their roles."""

import pytest

from server.schemas import (
    ChatCompletionRequest,
    TokenizeRequest,
    validate,
)
from server.strict_json import JsonValue
from tests.support.requests import CHAT, refusal

TEXT: JsonValue = {"type": "text", "text": "a"}


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


def test_text_parts_and_developer_are_understood() -> None:
    parts: JsonValue = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = validate(ChatCompletionRequest, {**CHAT, "messages": [{"role": "developer", "content": parts}]})
    assert (chat.messages[0].text, chat.messages[0].template_role) == ("a\nb", "system")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "x"}]}, TEXT]}, "a"),
        ({"content": [{"type": "reasoning", "text": "x"}]}, ""),
        ({"content": [TEXT, {"type": "refusal", "refusal": "no"}]}, "a\nno"),
        ({"content": None, "refusal": "no"}, "no"),
    ],
)
def test_answers_of_other_servers_lose_reasoning_and_keep_refusals(answer: dict[str, JsonValue], text: str) -> None:
    user: JsonValue = {"role": "user", "content": "q"}
    body: dict[str, JsonValue] = {**CHAT, "messages": [user, {"role": "assistant", **answer}, user]}
    assert validate(ChatCompletionRequest, body).messages[1].text == text


@pytest.mark.parametrize("part", [{"type": "thinking"}, {"type": "refusal", "refusal": "no"}])
def test_a_user_has_no_reasoning_and_refuses_nothing(part: JsonValue) -> None:
    body: dict[str, JsonValue] = {**CHAT, "messages": [{"role": "user", "content": [part]}]}
    assert refusal(ChatCompletionRequest, body) == ("messages[0].content[0].type", "unsupported_value")
