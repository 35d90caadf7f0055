"""server/http/limits/body_limit.py: a body that does not arrive in time. Sizes: see test_middleware.py."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message

from server.errors import request_memory_full
from server.fairness.request_memory import Lease, RequestMemory
from server.http.limits import body_limit
from server.http.limits.body_limit import BodyLimit
from tests.support.servers.asgi_client import Reply

LIMIT = 1000


@pytest.fixture(autouse=True)
def _short_discard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "DISCARD_S", 0.01)


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


def sent_by(
    memory: RequestMemory, receive: Callable[[], Awaitable[Message]], app: Any, timeout_s: float = 30.0
) -> Reply:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    limited = BodyLimit(app, LIMIT, memory, timeout_s)
    asyncio.run(limited({"type": "http", "headers": []}, receive, send))  # type: ignore[arg-type]
    return Reply(sent)


def test_a_body_and_what_is_parsed_from_it_hold_memory_until_the_request_has_ended() -> None:
    memory = RequestMemory(1 << 20)
    held: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        held.append(memory.used_bytes)
        scope["state"]["lease"].on_close(lambda: held.append(memory.used_bytes))

    async def receive() -> Message:
        return {"type": "http.request", "body": b'{"a": [1, 2]}', "more_body": False}

    sent_by(memory, receive, app)
    assert held == [600 + 100 + 64 + 2 * 13, 0]


def test_a_body_that_is_dropped_at_critical_memory_is_a_503() -> None:
    memory = RequestMemory(1 << 20)

    async def reached(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the app was called")

    async def receive() -> Message:
        memory.evict_reading()
        await asyncio.Event().wait()
        raise AssertionError

    reply = sent_by(memory, receive, reached)
    assert (reply.status, reply.error["code"]) == (503, "request_memory_full")
    assert memory.used_bytes == 0


def test_a_body_without_room_is_read_to_its_end_so_that_its_client_can_read_the_503() -> None:
    class Full(RequestMemory):
        async def grow(self, lease: Lease, num_bytes: int) -> None:
            raise request_memory_full(5.0)

    async def reached(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the app was called")

    num_left = 5

    async def receive() -> Message:
        nonlocal num_left
        num_left -= 1
        return {"type": "http.request", "body": b"x" * 10, "more_body": num_left > 0}

    reply = sent_by(Full(100), receive, reached)
    assert (reply.status, reply.error["code"], num_left) == (503, "request_memory_full", 0)
    assert int(reply.headers["retry-after"]) == 5


def test_a_503_does_not_wait_for_more_of_a_body_that_is_complete() -> None:
    class Full(RequestMemory):
        async def grow(self, lease: Lease, num_bytes: int) -> None:
            raise request_memory_full(5.0)

    async def reached(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the app was called")

    messages: list[Message] = [{"type": "http.request", "body": b"x", "more_body": False}]

    async def receive() -> Message:
        return messages.pop()  # a second call fails

    assert sent_by(Full(100), receive, reached).status == 503


@pytest.mark.parametrize("is_evicted", [False, True])
def test_a_late_body_is_read_to_its_end_so_that_its_client_can_read_the_answer(is_evicted: bool) -> None:
    memory = RequestMemory(1 << 20)
    num_left = 5

    async def reached(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the app was called")

    async def receive() -> Message:
        nonlocal num_left
        if num_left == 5:
            num_left -= 1
            if is_evicted:
                memory.evict_reading()
            await asyncio.Event().wait()
        num_left -= 1
        return {"type": "http.request", "body": b"x" * 10, "more_body": num_left > 0}

    reply = sent_by(memory, receive, reached, timeout_s=60.0 if is_evicted else 0.01)
    assert (reply.status, num_left) == (503 if is_evicted else 408, 0)


def test_a_body_that_was_not_read_for_lack_of_memory_is_not_blamed_for_being_late() -> None:
    memory = RequestMemory(1 << 20)
    chunks = [b"x" * 10]

    async def receive() -> Message:
        if not chunks:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": chunks.pop(), "more_body": True}

    async def never(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the app was called")

    async def scenario() -> Reply:
        full = memory.open(0)
        await full.grow(1 << 20)
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        limited = BodyLimit(never, LIMIT, memory, timeout_s=0.01)  # before the pool refuses the body
        await limited({"type": "http", "headers": []}, receive, send)  # type: ignore[arg-type]
        return Reply(sent)

    reply = asyncio.run(scenario())
    assert (reply.status, reply.error["code"]) == (503, "request_memory_full")
