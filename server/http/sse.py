"""Server-sent events: the only place that formats them.

Knows nothing of completions or chats: it is given JSON payloads, already encoded, and sends each as one event.
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

KEEP_ALIVE_S = 10.0  # proxies cut streams that stay silent

_KEEP_ALIVE = b": keep-alive\n\n"
_DONE = b"data: [DONE]\n\n"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EventFormat:
    """How an API writes its streams."""

    prefix: bytes  # of each payload
    end: bytes  # of a stream, whatever happened
    error: Callable[[ApiError], bytes]  # the payload that tells an error


OPENAI = EventFormat(b"data: ", _DONE, lambda error: orjson.dumps(error.body()))


def named(event: Mapping[str, object]) -> bytes:
    """The payload of an event that has its type as its name, for a dialect without a prefix."""
    return f"event: {event['type']}\ndata: ".encode() + orjson.dumps(event)


class EventStream(Response):
    """An ASGI response that sends payloads as they come and ends as its dialect does, whatever happens.

    `payloads` yields batches; each batch is one write, an empty one a keep-alive comment. Nothing is sent before the
    first batch: an error raised until then is answered with its own status, one raised later becomes an error event.
    The generator is closed when the stream ends or the client goes away; one that stops reading is sent away by
    server.http_protocol.
    """

    media_type = "text/event-stream"

    def __init__(
        self, payloads: AsyncGenerator[list[bytes], None], headers: Mapping[str, str], dialect: EventFormat = OPENAI
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        self._payloads = payloads
        self._dialect = dialect
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
                    await self._send(send, self._events(batch) if batch else _KEEP_ALIVE)
        except Exception as error:
            if not self._started:
                raise
            await self._send(send, self._events([self._dialect.error(_api_error(error))]))
        await self._send(send, self._dialect.end, more=False)

    def _events(self, payloads: list[bytes]) -> bytes:
        prefix = self._dialect.prefix
        return prefix + (b"\n\n" + prefix).join(payloads) + b"\n\n"

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
