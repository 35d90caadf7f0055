"""A running server as the terminal's commands see it: JSON answers and streams, over the standard library's HTTP."""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0  # a waiting stream says something every 10 s
CUT = "the connection was cut before the answer was complete"


class RemoteError(Exception):
    """The server did not do what was asked. One line for the person at the terminal."""


class ApiClient:
    """The server at a URL, with or without /v1 at its end."""

    def __init__(self, url: str, api_key: str | None) -> None:
        """Raises RemoteError for what is no URL."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
        except ValueError:  # a bracket that is not closed
            raise RemoteError(f"{url}: should be like http://127.0.0.1:8000") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RemoteError(f"{url}: should be like http://127.0.0.1:8000")
        self._is_tls = parts.scheme == "https"
        self._place = parts.netloc
        self._root = parts.path.rstrip("/").removesuffix("/v1")
        self._key = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def get(self, path: str) -> Any:
        """The JSON at `path`. Raises RemoteError."""
        with self._reply("GET", path, None) as reply:
            return json.loads(reply.read())

    def stream(self, path: str, fields: Mapping[str, object]) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed answer. Raises RemoteError, also in the middle; closing it stops the work."""
        body = json.dumps({**fields, "stream": True}).encode()
        with self._reply("POST", path, body) as reply:
            for line in reply:
                if line.startswith(b"data: "):
                    if line.strip() == b"data: [DONE]":
                        return
                    yield _chunk(json.loads(line[len(b"data: ") :]))
        raise RemoteError(CUT)

    @contextmanager
    def _reply(self, method: str, path: str, body: bytes | None) -> Iterator[http.client.HTTPResponse]:
        """The answer. What goes wrong before it or while it is read is a RemoteError."""
        with closing(self._connected()) as connection:
            try:
                connection.request(method, self._root + path, body, {"Content-Type": "application/json", **self._key})
                reply = connection.getresponse()
                if reply.status != http.client.OK:
                    raise RemoteError(_refusal(reply))
                yield reply
            except (OSError, http.client.HTTPException):
                raise RemoteError(CUT) from None
            except ValueError:
                raise RemoteError(f"what answers at {self._place} is no smoe") from None

    def _connected(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._is_tls else http.client.HTTPConnection
        try:
            connection = kind(self._place, timeout=CONNECT_TIMEOUT_S)
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise RemoteError(f"no smoe answers at {self._place} ({reason}): start one with `smoe serve`") from None
        connection.sock.settimeout(READ_TIMEOUT_S)
        return connection


def _chunk(chunk: dict[str, Any]) -> dict[str, Any]:
    if "error" in chunk:
        raise RemoteError(chunk["error"]["message"])
    return chunk


def _refusal(reply: http.client.HTTPResponse) -> str:
    """What the server says is wrong, or its status where it says nothing readable."""
    try:
        message = str(json.loads(reply.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {reply.status} {reply.reason}"
    return f"{message} (give it with --api-key)" if reply.status == http.client.UNAUTHORIZED else message
