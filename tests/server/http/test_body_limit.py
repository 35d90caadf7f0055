"""server/http/body_limit.py: a body that does not arrive in time. Sizes: see test_middleware.py."""

import asyncio
from typing import Any

from starlette.types import Message

from server.http.body_limit import BodyLimit
from tests.support.asgi_client import Reply

LIMIT = 1000


def test_a_body_that_never_ends_is_a_408() -> None:
    async def reached(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the app was called")

    async def scenario() -> list[Message]:
        sent: list[Message] = []

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message)

        await BodyLimit(reached, LIMIT, timeout_s=0.01)({"type": "http", "headers": []}, receive, send)
        return sent

    reply = Reply(asyncio.run(scenario()))
    assert (reply.status, reply.error["code"]) == (408, "request_timeout")
