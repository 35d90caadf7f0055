"""Send lines of a batch through the app's own handlers, without a socket."""

import asyncio
import logging

from starlette.types import ASGIApp, Message

from server.batch.lines import BatchLine
from server.batch.runner import NOTES, Answer, Send, seconds

PRIORITY = 1 << 20  # lower ones are first, and requests of clients have 0

log = logging.getLogger(__name__)


def app_sender(app: ASGIApp, tenant: int, *, by_priority: bool) -> Send:
    """Return a function that sends a tenant's lines to `app`, behind all requests of the tenant's clients.

    `by_priority`: the server orders requests by priority. Otherwise it would report the field as ignored.
    """

    async def send(line: BatchLine) -> Answer:
        body = line.body_bytes(priority=PRIORITY) if by_priority else line.body_bytes()
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        response = _Response()

        async def receive() -> Message:
            if not pending:
                await asyncio.Event().wait()  # this client never disconnects
            return pending.pop()

        try:
            await app(_scope(line.url, len(body), tenant), receive, response.send)
        except Exception:  # the app has sent its 500 before
            log.exception("a request of a batch failed")
        return response.answer()

    return send


class _Response:
    """Response of the app. 500 until it starts."""

    def __init__(self) -> None:
        self._status = 500
        self._headers: dict[bytes, bytes] = {}
        self._body = bytearray()
        self._is_complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], dict(message["headers"])
        else:
            self._body += message.get("body", b"")
            self._is_complete = not message.get("more_body", False)

    def answer(self) -> Answer:
        request_id = self._headers.get(b"x-request-id", b"").decode("latin-1")
        wait_s = seconds(self._headers.get(b"retry-after", b"").decode("latin-1"))
        is_json = self._is_complete and self._headers.get(b"content-type") == b"application/json"
        is_json = is_json and b"\n" not in self._body  # the app's own JSON has none
        named = ((name, self._headers.get(name.encode())) for name in NOTES)
        notes = {name: value.decode("latin-1") for name, value in named if value is not None}
        return Answer(self._status, request_id, self._body, wait_s, is_json, notes)


def _scope(path: str, num_bytes: int, tenant: int) -> dict[str, object]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(num_bytes).encode())],
        "client": None,
        "server": None,
        "state": {"tenant": tenant},
    }
