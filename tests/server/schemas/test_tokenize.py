"""server/schemas/tokenize.py: a prompt or a conversation."""

import pytest

from server.errors import ApiError
from server.schemas import (
    DetokenizeRequest,
    TokenizeRequest,
    validate,
)
from tests.support.requests import BELOW, CHAT, refusal


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


def test_tokenize_takes_the_tools_that_chat_takes_and_no_others() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [tool, tool]}
    with pytest.raises(ApiError) as refused:
        validate(TokenizeRequest, body)
    assert refused.value.param == "tools[1].function.name"
