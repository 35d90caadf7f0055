"""server/http/error_response.py: an error becomes a complete response in the format of the endpoint."""

import pytest

from server.errors import ApiError, invalid_api_key
from server.http.error_response import send_error
from tests.support.servers.asgi_client import Client


@pytest.mark.parametrize("error", [ApiError("no", code="some_code"), invalid_api_key()])
def test_status_headers_and_body_are_the_errors(error: ApiError) -> None:
    reply = Client(lambda scope, receive, send: send_error(scope, send, error)).send()
    assert reply.status == error.status
    assert reply.error == error.body()["error"]
    assert int(reply.headers["content-length"]) == len(reply.body)
    assert reply.headers.items() >= error.headers.items()
