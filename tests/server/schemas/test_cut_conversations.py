"""Ollama's chat and Responses without their oldest turns: no result loses its call."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest

from server.errors import ApiError
from server.schemas import ChatCompletionRequest, OllamaChatRequest, ResponsesRequest, TranslatedRequest, validate
from server.schemas.translated import TruncatableRequest

MAX_ITEMS = 5
OLLAMA: dict[str, dict[str, Any]] = {
    "user": {"role": "user", "content": "a"},
    "call": {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
    "call that was cut off": {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
    "result": {"role": "tool", "content": "a"},
}
CALL = {"type": "function_call", "call_id": "x", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "x", "output": "a"}
RESPONSES: dict[str, dict[str, Any]] = {
    "user": {"role": "user", "content": "a"},
    "call": CALL,
    "call that was cut off": {**CALL, "call_id": "y", "arguments": "{"},
    "result": RESULT,
    "result of the other call": {**RESULT, "call_id": "y"},
}


def is_chat(request: TranslatedRequest) -> bool:
    try:
        validate(ChatCompletionRequest, request.chat_body())
    except ApiError:
        return False
    return True


def requests(
    model: type[TruncatableRequest], items: dict[str, dict[str, Any]]
) -> Iterable[tuple[tuple[str, ...], TruncatableRequest]]:
    """Yield every sequence of up to MAX_ITEMS items, and its request."""
    for length in range(1, MAX_ITEMS + 1):
        for kinds in product(items, repeat=length):
            yield kinds, validate(model, {str(model.turns_field): [items[kind] for kind in kinds]})


@pytest.mark.parametrize(("model", "items"), [(OllamaChatRequest, OLLAMA), (ResponsesRequest, RESPONSES)])
def test_what_is_left_of_a_valid_conversation_is_valid_wherever_a_turn_begins(
    model: type[TruncatableRequest], items: dict[str, dict[str, Any]]
) -> None:
    """A message of the user between a call and its result makes the whole conversation a 400, before any cut."""
    num_cuts = 0
    for kinds, request in requests(model, items):
        if is_chat(request):
            for start in request.turn_starts():
                assert is_chat(request.without_turns(start)), (kinds, start)
                num_cuts += 1
    assert num_cuts > 100
