"""server/schemas/completion.py: valid prompts, and one 400 per bad field."""

import pytest

from server.schemas import (
    CompletionRequest,
    validate,
)
from server.strict_json import JsonValue
from tests.support.requests import ABOVE, PROMPT, refusal


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
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
    ],
    ids=str,
)
def test_each_bad_completion_is_a_400(extra: dict[str, JsonValue], param: str, code: str) -> None:
    assert refusal(CompletionRequest, {**PROMPT, **extra}) == (param, code)


def test_a_prompt_comes_in_four_shapes() -> None:
    shapes: list[tuple[JsonValue, object]] = [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2]], [[1], [2]]),
    ]
    for prompt, expected in shapes:
        assert validate(CompletionRequest, {"model": "m", "prompt": prompt}).prompt == expected
