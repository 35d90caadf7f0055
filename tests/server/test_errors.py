"""server/errors.py: error bodies, and the status, code and headers of each error."""

import pytest

from server import errors
from server.errors import ApiError


def test_the_body_has_the_four_fields_and_nothing_else() -> None:
    error = ApiError("No.", param="n", code="invalid_value")
    expected = {"message": "No.", "type": "invalid_request_error", "param": "n", "code": "invalid_value"}
    assert error.body() == {"error": expected}


@pytest.mark.parametrize(
    ("error", "status", "code", "headers"),
    [
        (errors.host_not_allowed(), 403, "host_not_allowed", {}),
        (errors.origin_not_allowed(), 403, "origin_not_allowed", {}),
        (errors.invalid_api_key(), 401, "invalid_api_key", {"www-authenticate": "Bearer"}),
        (errors.model_not_found(), 404, "model_not_found", {}),
        (errors.unknown_url(), 404, "unknown_url", {}),
        (errors.method_not_allowed(["GET", "HEAD"]), 405, "method_not_allowed", {"allow": "GET, HEAD"}),
        (errors.request_timeout(), 408, "request_timeout", {"connection": "close"}),
        (errors.request_too_large(9), 413, "request_too_large", {"connection": "close"}),
        (errors.unsupported_content_type(), 415, "unsupported_content_type", {}),
        (errors.unsupported_content_encoding(), 415, "unsupported_content_encoding", {}),
        (errors.malformed_request(), 400, "malformed_request", {"connection": "close"}),
        (errors.headers_too_large(), 431, "headers_too_large", {"connection": "close"}),
        (errors.queue_full(7.2), 429, "queue_full", {"retry-after": "7"}),
        (errors.internal_error(), 500, "internal_error", {"x-should-retry": "false"}),
        (errors.internal_error(deterministic=False), 500, "internal_error", {}),
        (errors.unavailable("draining", 3), 503, "draining", {"retry-after": "3"}),
    ],
)
def test_each_case_has_its_status_code_and_headers(
    error: ApiError, status: int, code: str, headers: dict[str, str]
) -> None:
    assert (error.status, error.code, error.headers) == (status, code, headers)


def test_retry_after_stays_within_the_limit_that_clients_obey() -> None:
    assert errors.queue_full(10_000).headers == {"retry-after": "120"}
    assert errors.queue_full(0.01).headers == {"retry-after": "1"}


def test_the_message_for_a_long_prompt_has_all_numbers() -> None:
    error = errors.context_length_exceeded(1990, 100, 2048, "prompt")
    assert error.code == "context_length_exceeded"
    assert all(number in error.message for number in ("1990", "100", "2048"))
