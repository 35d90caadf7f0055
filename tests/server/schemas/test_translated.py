"""Invalid requests to the endpoints that translate to chat."""

from typing import Any

import pytest

from server.errors import ApiError
from server.schemas import CountTokensRequest, MessagesRequest, ResponsesRequest, validate
from server.schemas.validation import RequestModel

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
JSON_FORMAT: dict[str, Any] = {"type": "json_schema", "schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("model", "change", "param", "code"),
    [
        (ResponsesRequest, {"input": []}, "input", "empty_array"),
        (ResponsesRequest, {"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        (ResponsesRequest, {"input": [{"role": "root", "content": "a"}]}, "input[0].role", "invalid_value"),
        (ResponsesRequest, {"input": [{"type": "item_reference", "id": "a"}]}, "input[0].type", "unsupported_value"),
        (ResponsesRequest, {"input": [{"content": "a"}]}, "input[0].type", "missing_required_parameter"),
        (ResponsesRequest, {"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        (ResponsesRequest, {"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        (
            ResponsesRequest,
            {"text": {"format": {"type": "text", "regex": "a"}}},
            "text.format.regex",
            "unknown_parameter",
        ),
        (ResponsesRequest, {"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        (ResponsesRequest, {"tool_choice": {"type": "web_search"}}, "tool_choice.type", "invalid_value"),
        (ResponsesRequest, {"tool_choice": {"type": "custom"}}, "tool_choice.name", "missing_required_parameter"),
        (
            ResponsesRequest,
            {"tools": [{"type": "custom", "name": "a", "format": {"type": "grammar", "syntax": "lark"}}]},
            "tools",
            "invalid_value",
        ),
        (ResponsesRequest, {"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
        (ResponsesRequest, {"seed": 2**63}, "seed", "integer_above_max_value"),
        (ResponsesRequest, {"tool_choice": "must"}, "tool_choice", "invalid_value"),
        (MessagesRequest, {"max_tokens": None}, "max_tokens", "missing_required_parameter"),
        (MessagesRequest, {"messages": [{"role": "root", "content": "a"}]}, "messages[0].role", "invalid_value"),
        (MessagesRequest, {"tools": [{"name": "f"}]}, "tools[0].input_schema", "missing_required_parameter"),
        (MessagesRequest, {"output_format": {"type": "json"}}, "output_format.type", "invalid_value"),
        (
            MessagesRequest,
            {"output_format": JSON_FORMAT, "output_config": {"format": JSON_FORMAT | {"schema": {}}}},
            "output_format",
            "invalid_value",
        ),
        (
            MessagesRequest,
            {"output_config": {"format": {"type": "regex"}}},
            "output_config.format.type",
            "invalid_value",
        ),
        (
            MessagesRequest,
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0].type",
            "unsupported_value",
        ),
        (
            MessagesRequest,
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        (MessagesRequest, {"mcp_servers": [{"url": "a"}]}, "mcp_servers", "unsupported_parameter"),
        (CountTokensRequest, {"messages": "a"}, "messages", "invalid_type"),
    ],
    ids=str,
)
def test_a_bad_request_is_a_400_with_the_endpoints_own_field_names(
    model: type[RequestModel], change: dict[str, Any], param: str, code: str
) -> None:
    body = (
        {"model": "m", "input": "a"}
        if model is ResponsesRequest
        else {"model": "m", "messages": HELLO, "max_tokens": 1}
    )
    with pytest.raises(ApiError) as error:
        validate(model, {**body, **change})
    assert (error.value.param, error.value.code) == (param, code)
