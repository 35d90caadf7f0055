"""uvicorn's HTTP/1.1 connection, with what it lacks: a limit on the time that a request's head may take and on that
in which a client may read nothing, errors in the API's shape for bytes that are no request, a limit on how many
connections there are, and small reads that take turns, so that no client and no crowd holds the event loop for long.

h11 parses, because it stops reading heads at a size; httptools buffers whatever comes.
"""

import asyncio
import secrets
import sys
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

import h11
import orjson
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState as UvicornState

from server.errors import ApiError, headers_too_large, malformed_request, request_timeout
from server.http.connections import Connections
from server.http.read_limiter import ReadLimiter

HEAD_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 60.0
MAX_HEAD_BYTES = 64 << 10
# A body in chunks of one byte costs the parser some 10 us for 6 bytes read, and libuv reads up to 32 times before the
# loop goes on: with 1 KiB each that is at most 60 ms, where 256 KiB each took over a second.
READ_BYTES = 1024
LATE_S = 0.05  # after a head's time is over: until the loop has looked once more whether something had come
PRIORITY_PREFIXES = tuple(b"GET %s" % path for path in (b"/health", b"/ping", b"/metrics"))  # how such a request begins


class Connection(H11Protocol):
    """One connection. Its head timer runs while the parser waits for (the rest of) a request's head, its stall timer
    while there is more to send than the buffers hold: an answer then waits, and what it would tell is put together."""

    head_timeout_s = HEAD_TIMEOUT_S
    on_refusal: Callable[[int], None] = staticmethod(lambda status: None)  # told the status of each such answer
    stall_timeout_s = STALL_TIMEOUT_S
    open_connections = Connections()
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()
        self.open_connections.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.closed(self)
        self._stop_head_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()
        self._tell_whose_turn_it_is()

    def on_response_complete(self) -> None:
        """What the client has not taken yet must go in time, too: a close would wait for it."""
        super().on_response_complete()
        self._tell_whose_turn_it_is()
        if self._stall_timer is None and self.transport.get_write_buffer_size():
            self._watch_reader()

    @property
    def is_in_a_body(self) -> bool:
        """Whether a request has begun whose body is not complete."""
        return self.conn.their_state is h11.SEND_BODY

    def stop_waiting(self) -> None:
        """Something came, that will be parsed when its turn has come."""
        self._stop_head_timer()
        self._unset_keepalive_if_required()

    def abort(self) -> None:
        """Closes, whatever is unsent."""
        self.transport.abort()

    def _tell_whose_turn_it_is(self) -> None:
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self.open_connections.mark_idle(self)
        else:
            self.open_connections.mark_busy(self)

    def _watch_head(self) -> None:
        """Bytes that trickle in do not start the timer anew; a complete head stops it."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        """If the loop was slow, the head may have come long ago: timers go before reads."""
        self._head_timer = self.loop.call_later(LATE_S, self._head_is_missing)

    def _head_is_missing(self) -> None:
        """An answer where a head has begun; a client that never sent a byte asked for none."""
        if self.conn.trailing_data[0]:
            self._refuse(request_timeout())
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    def _watch_reader(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(self.stall_timeout_s, self._reader_is_late, unsent)

    def _reader_is_late(self, unsent_before: int) -> None:
        """A client that took something, however little, gets more time. Aborted, not closed: that would wait for it."""
        self._stall_timer = None
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0:
            return
        if unsent < unsent_before:
            self._watch_reader()
        else:
            self.transport.abort()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this while it handles h11's error."""
        error = sys.exception()
        is_too_large = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
        self._refuse(headers_too_large() if is_too_large else malformed_request())

    def _refuse(self, error: ApiError) -> None:
        """Answers, unless an answer has begun, and closes."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = orjson.dumps(error.body())
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "x-request-id": secrets.token_hex(16),
                **error.headers,
            }
            reason = HTTPStatus(error.status).phrase
            response = h11.Response(status_code=error.status, headers=list(headers.items()), reason=reason.encode())
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.on_refusal(error.status)
        self.transport.close()


class BoundedReadProtocol(asyncio.BufferedProtocol):
    """What uvicorn makes for each socket: a connection that is given at most READ_BYTES at a time, a head in its turn.
    While that waits nothing more is read; a body, whose time runs, is read as it comes."""

    _transport: asyncio.Transport | None = None  # None before and after the connection
    _unparsed = b""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: UvicornState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        on_http: Callable[[str, str, int], None],
        connections: Connections,
        crowd: ReadLimiter,
    ) -> None:
        """`on_http` is told of the answers that no route gave: (route, method, status). `connections` counts them,
        `crowd` says whose turn it is."""
        self._crowd = crowd
        self._connection = Connection(config, server_state, app_state, _loop)
        self._connection.on_refusal = partial(on_http, "other", "other")
        self._connection.open_connections = connections
        self._buffer = bytearray(READ_BYTES)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._buffer[:nbytes])
        if self._unparsed:
            self._unparsed += data
        elif self._connection.is_in_a_body or self._crowd.try_acquire() or data.startswith(PRIORITY_PREFIXES):
            self._connection.data_received(data)
        elif self._transport is not None:
            self._unparsed = data
            self._transport.pause_reading()
            self._connection.stop_waiting()
            self._crowd.wait(self._parse)

    def _parse(self) -> None:
        data, self._unparsed = self._unparsed, b""
        if self._transport is None or self._transport.is_closing():
            return
        if not self._connection.flow.read_paused:
            self._transport.resume_reading()
        self._connection.data_received(data)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._connection.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connection.connection_lost(exc)

    def eof_received(self) -> None:
        self._connection.eof_received()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
