"""server/http/sse.py: batches become events, and every stream ends as its format requires."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from server.errors import ApiError
from server.http import sliced_response
from server.http.sse import EventStream, LongPayload

pytestmark = pytest.mark.anyio


async def sent_by(stream: EventStream, *, gone: asyncio.Event | None = None) -> list[Message]:
    """Return the messages that an event stream sends to a client that disconnects when `gone` is set, or never."""
    sent: list[Message] = []

    async def receive() -> Message:
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await stream({"type": "http"}, receive, send)
    return sent


def body_of(sent: list[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent)


async def test_an_empty_batch_becomes_a_comment_and_an_error_becomes_an_event() -> None:
    async def payloads() -> AsyncGenerator[list[bytes], None]:
        yield []
        yield [b"1", b"2"]
        raise ApiError("no", code="some_code")

    sent = await sent_by(EventStream(payloads(), {}))
    error = b'{"error":{"message":"no","type":"invalid_request_error","param":null,"code":"some_code"}}'
    assert body_of(sent) == b": keep-alive\n\ndata: 1\n\ndata: 2\n\ndata: " + error + b"\n\ndata: [DONE]\n\n"
    assert [message["type"] for message in sent].count("http.response.start") == 1


async def test_a_long_payload_is_one_event_in_writes_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced_response, "SEND_BYTES", 8)

    async def payloads() -> AsyncGenerator[list[bytes], None]:
        yield [b"1"]
        yield LongPayload([b"23", b"45", b"678901234567", b"8"])
        yield [b"9"]

    sent = await sent_by(EventStream(payloads(), {}))
    assert body_of(sent) == b"data: 1\n\ndata: 23456789012345678\n\ndata: 9\n\ndata: [DONE]\n\n"
    bodies = [message["body"] for message in sent if message.get("body")]
    assert bodies[1:-2] == [b"data: 23", b"45", b"67890123", b"4567", b"8\n\n"]


async def test_an_error_before_the_first_batch_is_raised_and_nothing_is_sent() -> None:
    async def payloads() -> AsyncGenerator[list[bytes], None]:
        raise ApiError("no")
        yield []

    with pytest.raises(ApiError):
        await sent_by(EventStream(payloads(), {}))


async def test_a_disconnect_closes_the_payloads() -> None:
    closed, gone = asyncio.Event(), asyncio.Event()

    async def payloads() -> AsyncGenerator[list[bytes], None]:
        with contextlib.suppress(GeneratorExit):
            try:
                yield [b"1"]
                gone.set()
                await asyncio.Event().wait()
            finally:
                closed.set()

    assert body_of(await sent_by(EventStream(payloads(), {}), gone=gone)) == b"data: 1\n\n"
    assert closed.is_set()
