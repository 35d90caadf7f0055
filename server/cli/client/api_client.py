"""Client of a running server for the terminal commands: JSON and streams, over the standard library's HTTP."""

import http.client
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from server.bench.authorization import bearer
from server.bench.server_url import parse_server_url
from server.bench.unreachable import TRY_TLS, tls_fault, unreachable
from server.cli.client.unix_connection import UnixConnection

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0  # the server sends a keep-alive comment every 10 s while a stream waits
NO_HEADERS: Mapping[str, str] = {}
CLOSED_EARLY = "the connection was closed before the answer was complete"


class ApiError(Exception):
    """A request that failed. One line for the user."""


class NoServerError(ApiError):
    """Nothing answers at the address."""


class ApiClient:
    """Client of the server at a URL, with or without /v1 at its end."""

    def __init__(self, url: str, api_key: str | None) -> None:
        """Raises ApiError if the URL or the key is invalid."""
        try:
            self._server = parse_server_url(url)
            self._authorization = {"Authorization": bearer(api_key)} if api_key else {}
        except ValueError as error:
            raise ApiError(str(error)) from None
        self.url = url
        self.api_key = api_key

    def get(self, path: str) -> Any:
        """Return the JSON at `path`. Raises ApiError."""
        with self._request("GET", path, None) as response:
            return json.loads(response.read())

    def post(self, path: str, fields: Mapping[str, object]) -> Any:
        """Return the JSON reply to a request. Raises ApiError."""
        with self._request("POST", path, _body(fields)) as response:
            return json.loads(response.read())

    def stream(
        self, path: str, fields: Mapping[str, object], headers: Mapping[str, str] = NO_HEADERS
    ) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a streamed response. Closing the generator aborts the request on the server.

        Raises ApiError, also between chunks.
        """
        body = _body({**fields, "stream": True})
        with self._request("POST", path, body, headers) as response:
            for line in response:
                if line.startswith(b"data: "):
                    if line.strip() == b"data: [DONE]":
                        return
                    yield _chunk(json.loads(line[len(b"data: ") :]))
        raise ApiError(CLOSED_EARLY)

    @contextmanager
    def _request(
        self, method: str, path: str, body: bytes | None, extra: Mapping[str, str] = NO_HEADERS
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and yield its response. Faults of the connection, also inside the block, become ApiError."""
        headers = {"Content-Type": "application/json", **self._authorization, **extra}
        with closing(self._connect()) as connection:
            try:
                connection.request(method, self._server.root + path, body, headers)
                response = connection.getresponse()
                if response.status != http.client.OK:
                    raise ApiError(_error_message(response))
                yield response
            except http.client.BadStatusLine:  # or nothing at all: what a TLS server answers to a request without TLS
                raise ApiError(CLOSED_EARLY + ("" if self._server.is_tls else TRY_TLS)) from None
            except (OSError, http.client.HTTPException):
                raise ApiError(CLOSED_EARLY) from None
            except ValueError:
                raise ApiError(f"the server at {self._server.authority} is not smoe: its answer is not JSON") from None

    def _connect(self) -> http.client.HTTPConnection:
        try:
            connection = self._connection()
            connection.connect()
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if isinstance(error, UnicodeError):  # a label that is empty or too long
                reason = "DNS has no such names"
            kind_of_error = NoServerError if tls_fault(error) is None else ApiError
            raise kind_of_error(unreachable(error, self._server.authority, reason)) from None
        connection.sock.settimeout(READ_TIMEOUT_S)
        return connection

    def _connection(self) -> http.client.HTTPConnection:
        if self._server.uds:
            return UnixConnection(self._server.uds, CONNECT_TIMEOUT_S)
        kind = http.client.HTTPSConnection if self._server.is_tls else http.client.HTTPConnection
        return kind(self._server.host, self._server.port, timeout=CONNECT_TIMEOUT_S)


def check_finite(fields: Mapping[str, object]) -> None:
    """Raise ApiError, in the words of a flag, if a number of a request is NaN or infinite, which JSON cannot have."""
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ApiError(f"--{name.replace('_', '-')} {value}: should be a finite number")


def _body(fields: Mapping[str, object]) -> bytes:
    check_finite(fields)
    try:
        return json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError("the text is not UTF-8") from None


def _chunk(chunk: dict[str, Any]) -> dict[str, Any]:
    if "error" in chunk:
        raise ApiError(chunk["error"]["message"])
    return chunk


def _error_message(response: http.client.HTTPResponse) -> str:
    """Return the message of the error body, or the status if the body has none."""
    try:
        message = str(json.loads(response.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {response.status} {response.reason}"
    return f"{message} (pass it with --api-key)" if response.status == http.client.UNAUTHORIZED else message
