"""server/http/limits/upload_limit.py: bodies that the app reads itself, within limits of size and time."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.errors import ApiError
from server.http.error_response import send_error
from server.http.limits import body_limit, upload_limit
from server.http.limits.upload_limit import UPLOAD_TIMEOUT_S, UploadLimit
from tests.support.servers.asgi_client import Reply

LIMIT = 100
PATH = "/v1/files"
Headers = list[tuple[bytes, bytes]]


async def _reading(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body to its end, and answer with its length."""
    num_bytes, more = 0, True
    try:
        while more:
            message = await receive()
            num_bytes += len(message.get("body", b""))
            more = message.get("more_body", False)
    except ApiError as error:
        await send_error(scope, send, error)
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(num_bytes).encode()})


async def _refusing(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 400, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _other(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b""})


class Client:
    """Sends a body in pieces. `num_sent`: how many of them were read."""

    def __init__(self, pieces: list[bytes], *, ends: bool = True) -> None:
        self._pieces = pieces
        self._ends = ends
        self.num_sent = 0

    async def receive(self) -> Message:
        if self.num_sent == len(self._pieces):
            await asyncio.Event().wait()
        self.num_sent += 1
        is_last = self._ends and self.num_sent == len(self._pieces)
        return {"type": "http.request", "body": self._pieces[self.num_sent - 1], "more_body": not is_last}


def reply_to(
    client: Client,
    headers: Headers | None = None,
    *,
    app: Any = _reading,
    method: str = "POST",
    path: str = PATH,
    clock: Callable[[], float] = lambda: 0.0,
) -> Reply:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Any = {"type": "http", "method": method, "path": path, "headers": headers or []}
    limited = UploadLimit(app, _other, frozenset({PATH}), LIMIT, clock)
    asyncio.run(limited(scope, client.receive, send))
    return Reply(sent)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "DISCARD_S", 0.01)
    monkeypatch.setattr(upload_limit, "BODY_TIMEOUT_S", 0.01)


@pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("POST", "/v1/files/a"), ("POST", "/v1/batches")])
def test_other_requests_go_to_the_other_app(method: str, path: str) -> None:
    assert reply_to(Client([]), method=method, path=path).status == 299


def test_a_body_up_to_the_limit_is_read_by_the_app() -> None:
    reply = reply_to(Client([b"x" * 60, b"y" * 40]))
    assert (reply.status, reply.body) == (200, b"100")


@pytest.mark.parametrize(
    ("headers", "status", "num_sent"),
    [
        ([], 413, 3),
        ([(b"content-length", b"180")], 413, 3),  # read and discarded, so that the client can read the answer
        ([(b"content-length", b"180"), (b"expect", b"100-continue")], 413, 0),
        ([(b"content-length", b"9"), (b"transfer-encoding", b"chunked")], 400, 0),
    ],
)
def test_a_body_beyond_the_limit_is_refused(headers: Headers, status: int, num_sent: int) -> None:
    client = Client([b"x" * 60] * 3)
    assert reply_to(client, headers).status == status
    assert client.num_sent == num_sent


def test_what_an_app_leaves_unread_is_discarded_before_its_answer() -> None:
    client = Client([b"x" * 30] * 3)
    assert reply_to(client, app=_refusing).status == 400
    assert client.num_sent == 3


def test_a_body_that_stands_still_is_a_408() -> None:
    reply = reply_to(Client([b"x"], ends=False))
    assert (reply.status, reply.error["code"]) == (408, "request_timeout")


def test_a_body_that_takes_too_long_is_a_408_however_steadily_it_comes() -> None:
    moments = iter([0.0, 1.0, UPLOAD_TIMEOUT_S + 1, UPLOAD_TIMEOUT_S + 1])
    reply = reply_to(Client([b"x"] * 3), clock=lambda: next(moments))
    assert (reply.status, reply.error["code"]) == (408, "request_timeout")
