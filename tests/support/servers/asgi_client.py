"""Call an ASGI app without a server."""

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp, Message


class Reply:
    """The response."""

    def __init__(self, messages: list[Message]) -> None:
        starts = [message for message in messages if message["type"] == "http.response.start"]
        self.was_sent = bool(starts)
        if starts:
            (start,) = starts
            self.status = start["status"]
            self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(message.get("body", b"") for message in messages)

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]


class Client:
    """Calls an app through ASGI. `chunks`: the body as it arrives; with `leaves` the client disconnects after them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.num_receives = 0

    def send(
        self,
        path: str = "/echo",
        *,
        method: str = "POST",
        headers: list[tuple[bytes, bytes]] | None = None,
        chunks: tuple[bytes, ...] = (b"",),
        leaves: bool = False,
        http_version: str = "1.1",
    ) -> Reply:
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": headers or [], "root_path": "", "scheme": "http", "server": ("h", 80), "client": ("c", 1),
            "http_version": http_version, "asgi": {"version": "3.0"},
        }  # fmt: skip
        incoming: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        if leaves:
            incoming.append({"type": "http.disconnect"})
        else:
            incoming[-1]["more_body"] = False
        sent: list[Message] = []

        async def receive() -> Message:
            self.num_receives += 1
            if not incoming:
                await asyncio.Event().wait()
            return incoming.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        asyncio.run(asyncio.wait_for(self.app(scope, receive, send), 10))
        return Reply(sent)
