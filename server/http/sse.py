"""Send server-sent events, and in the same way lines of JSON. This is the only module that formats them.

It knows no completions and no chats: it receives encoded JSON payloads and sends each as one event.
"""

import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.errors import ApiError, internal_error
from server.http.disconnect import ClientDisconnected, unless_disconnected
from server.http.sliced_response import slices

KEEP_ALIVE_S = 10.0  # proxies close streams that stay silent

_KEEP_ALIVE = b": keep-alive\n\n"
_DONE = b"data: [DONE]\n\n"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EventFormat:
    """Format of an API's event streams."""

    prefix: bytes  # before each payload
    end: bytes  # at the end of each stream, also after an error
    error: Callable[[ApiError], bytes]  # payload of an error event
    separator: bytes = b"\n\n"  # behind each payload
    media_type: str = "text/event-stream"


OPENAI = EventFormat(b"data: ", _DONE, lambda error: orjson.dumps(error.body()))


def named_event(event: Mapping[str, object], default: Callable[[object], object] | None = None) -> bytes:
    """Return the payload of an event whose `type` is also its name, for a format without a prefix.

    `default`: orjson's, for objects that it does not know.
    """
    return f"event: {event['type']}\ndata: ".encode() + orjson.dumps(event, default)


class LongPayload(list[bytes]):
    """A batch that is one payload in pieces: they are written in slices, each when the client has taken the last."""


class EventStream(Response):
    """ASGI response that sends payloads as events when they arrive, and always ends as its format requires.

    `payloads` yields batches: each batch is one write, an empty batch a keep-alive comment (lines of JSON have none). A
    LongPayload is several writes.
    Nothing is sent before the first batch, so that an error raised until then is answered with its own status; a later
    one becomes an error event.
    The generator is closed when the stream ends or the client disconnects. server/http/protocol.py disconnects a client
    that stops reading.
    """

    def __init__(
        self,
        payloads: AsyncGenerator[list[bytes], None],
        headers: Mapping[str, str],
        event_format: EventFormat = OPENAI,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.media_type = event_format.media_type
        self.init_headers({**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        self._payloads = payloads
        self._format = event_format
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self._write(send))
        except ClientDisconnected:
            if not self._started:
                raise

    async def _write(self, send: Send) -> None:
        try:
            async with aclosing(self._payloads) as payloads:
                async for batch in payloads:
                    if isinstance(batch, LongPayload):
                        for body in slices([self._format.prefix, *batch, self._format.separator]):
                            await self._send(send, body)
                    else:
                        await self._send(send, self._events(batch) if batch else _KEEP_ALIVE)
        except Exception as error:
            if not self._started:
                raise
            await self._send(send, self._events([self._format.error(_api_error(error))]))
        await self._send(send, self._format.end, more=False)

    def _events(self, payloads: list[bytes]) -> bytes:
        prefix, separator = self._format.prefix, self._format.separator
        return prefix + (separator + prefix).join(payloads) + separator

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": body, "more_body": more})


def _api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    _log.error("a stream failed", exc_info=error)
    return internal_error()
