"""Small valid requests, and the error of an invalid one."""

import pytest

from server.errors import ApiError
from server.schemas import (
    validate,
)
from server.schemas.validation import RequestModel
from server.strict_json import JsonValue

PROMPT: dict[str, JsonValue] = {"model": "m", "prompt": "x"}

CHAT: dict[str, JsonValue] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}

ABOVE, BELOW = "integer_above_max_value", "integer_below_min_value"


def refusal(model: type[RequestModel], body: dict[str, JsonValue]) -> tuple[str | None, str | None]:
    """Return the `param` and the `code` of the 400 that the body gets."""
    with pytest.raises(ApiError) as caught:
        validate(model, body)
    assert caught.value.status == 400
    return caught.value.param, caught.value.code
