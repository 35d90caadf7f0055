"""server/schemas/generation.py: the common fields of completions and chat, one 400 per bad value."""

import pytest

from server.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
)
from server.strict_json import JsonValue
from tests.support.requests import ABOVE, BELOW, CHAT, PROMPT, refusal

# Fields of both endpoints: value, code.
SHARED: list[tuple[str, JsonValue, str]] = [
    ("model", "", "empty_string"),
    ("model", 5, "invalid_type"),
    ("model", "m" * 1000, "string_above_max_length"),
    ("n", 0, BELOW),
    ("n", -1, BELOW),
    ("n", 129, ABOVE),
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
    ("repeat_penalty", 2.01, "decimal_above_max_value"),
    ("max_tokens", 0, BELOW),
    ("max_tokens", -2, BELOW),
    ("max_tokens", 1.0, "invalid_type"),
    ("min_tokens", -1, BELOW),
    ("seed", 1.5, "invalid_type"),
    ("seed", "a", "invalid_type"),
    ("seed", 2**63, ABOVE),
    ("seed", -(2**63) - 1, BELOW),
    ("stop", "", "empty_string"),
    ("stop", ["a", ""], "empty_string"),
    ("stop", ["a"] * 33, "array_above_max_length"),
    ("stop", "a" * 257, "string_above_max_length"),
    *[("stop", value, "invalid_type") for value in (5, [None], [["a"]])],
    ("stop_token_ids", [1] * 10_000, "array_above_max_length"),
    ("stop_token_ids", ["1"], "invalid_type"),
    ("logit_bias", {"1": 101}, "decimal_above_max_value"),
    ("logit_bias", {"1": None}, "invalid_type"),
    *[("logit_bias", {key: 1}, "invalid_value") for key in ("a", "01", "-1", "1.0", " 1", "\u0661")],
    ("allowed_token_ids", [], "empty_array"),
    *[("stream", value, "invalid_type") for value in ("yes", 1)],
    ("stream_options", {}, "invalid_value"),
    ("priority", 2**40, ABOVE),
    ("user", "a" * 1_000_000, "string_above_max_length"),
    ("bad_words", [""], "empty_string"),
    ("bad_words", ["x"] * 65, "array_above_max_length"),
    ("prompt_embeds", "x", "unsupported_parameter"),
    ("prompt_logprobs", 21, ABOVE),
    ("experts_per_token", 0, BELOW),
    ("experts_per_token", 1.0, "invalid_type"),
    ("experts_per_token", True, "invalid_type"),
    ("expert_mask", [True], "invalid_type"),
    ("expert_mask", [[1, 0]], "invalid_type"),
    ("expert_usage", 1, "invalid_type"),
    ("expert_routing", "yes", "invalid_type"),
    ("gate_logits", 1, "invalid_type"),
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
