"""HTTP/1.1 connections: uvicorn's H11Protocol with timeouts, limits and errors in the API's format.

Adds to uvicorn: a timeout for the head of a request, a timeout for a client that stops reading, a look for clients that
left after they had sent their next request too, errors in the API's format for invalid requests, and limits on header
lines and on open connections.

h11 is the parser because it limits the size of heads; httptools buffers everything.
"""

import asyncio
import secrets
import select
import sys
from collections.abc import Callable
from http import HTTPStatus

import h11
import orjson
from h11._readers import ContentLengthReader
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import ApiError, headers_too_large, malformed_request, request_timeout
from server.http.connections import Connections
from server.http.server_connection import ServerConnection

HEAD_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 60.0
MAX_HEAD_BYTES = 64 << 10
BODY_BUFFER_BYTES = 16 << 10  # of a body that the app has not received yet; uvicorn would buffer 64 KiB
LEAVING_CHECK_S = 1.0
HEAD_GRACE_S = 0.05  # after the head timeout, so that the loop can read what arrived in the meantime


class Connection(H11Protocol):
    """One connection with three timers.

    The head timer runs while the parser waits for (the rest of) a request's head. The stall timer runs while there is
    more to send than the buffers hold; a stream then pauses, and its later tokens are merged into fewer events. The
    leaving timer runs while the next request has arrived and waits for the response: nothing is read then, so that only
    a look at the socket tells that the client has left.
    """

    head_timeout_s = HEAD_TIMEOUT_S
    on_rejection: Callable[[int], None] = staticmethod(lambda status: None)  # gets the status of each error sent here
    stall_timeout_s = STALL_TIMEOUT_S
    leaving_check_s = LEAVING_CHECK_S
    open_connections = Connections()
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _leaving_timer: asyncio.TimerHandle | None = None
    _is_read_deferred = False
    _abort_handshake: Callable[[], object] | None = None  # between accept and connection_made

    def on_accepted(self, abort: Callable[[], object]) -> None:
        """Count the connection, which is idle, before its TLS handshake. `abort` ends the handshake."""
        self._abort_handshake = abort
        self.open_connections.opened(self)

    def on_refused(self) -> None:
        """Count the connection no more: there is no handshake that succeeded."""
        self.open_connections.closed(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.conn = ServerConnection(self.config.h11_max_incomplete_event_size or MAX_HEAD_BYTES)
        self._update_head_timer()
        if self._abort_handshake is None:
            self.open_connections.opened(self)
        self._abort_handshake = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.closed(self)
        self._stop_head_timer()
        self._stop_stall_timer()
        self._stop_leaving_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._is_read_deferred = False
        if self.conn.their_state is h11.MUST_CLOSE:
            return  # bytes after a connection's last request are no request; h11 would answer them with an error
        super().data_received(data)
        if self._is_between_requests:  # only empty lines have arrived, which old clients send behind a body
            self._wait_for_next_request()
            return
        self._update_leaving_timer()
        if self.is_reading_body and self.cycle is not None and len(self.cycle.body) > BODY_BUFFER_BYTES:
            self.flow.pause_reading()  # until the app receives
        self._update_head_timer()
        self._update_idle()

    @property
    def _is_between_requests(self) -> bool:
        """True behind a response, if no byte of the next request has arrived."""
        return self.conn.their_state is h11.IDLE and self.cycle is not None and not self.conn.trailing_data[0]

    def _wait_for_next_request(self) -> None:
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        if self.open_connections.is_finishing:
            self.finish()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """Start the stall timer for what is still unsent: closing the connection would wait for it."""
        super().on_response_complete()
        self._update_idle()
        if self._stall_timer is None and self.transport.get_write_buffer_size():
            self._start_stall_timer()

    @property
    def is_reading_body(self) -> bool:
        """True if the head of a request has arrived and its body is not complete."""
        return self.conn.their_state is h11.SEND_BODY

    @property
    def body_bytes_left(self) -> int:
        """Bytes that are still to come of a body whose length was declared; 0 outside of one, and if it has chunks."""
        reader = self.conn._reader
        return reader._remaining if self.is_reading_body and isinstance(reader, ContentLengthReader) else 0

    def on_read_deferred(self) -> None:
        """Stop the head and keep-alive timers: data has arrived and will be parsed in a later loop iteration."""
        self._is_read_deferred = True
        self._stop_head_timer()
        self._unset_keepalive_if_required()

    def abort(self) -> None:
        """Close the connection and drop unsent data."""
        if self._abort_handshake is not None:
            self._abort_handshake()
        else:
            self.transport.abort()

    def finish(self) -> None:
        """Close the connection after the running response, or at once if no byte of a request has arrived."""
        if self._abort_handshake is not None or self._is_read_deferred or self.conn.trailing_data[0].strip(b"\r\n"):
            return  # the response to this request closes it, or the timeout for its head does
        if self.conn.their_state is h11.IDLE or self.cycle is not None:
            self.shutdown()

    def _update_idle(self) -> None:
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self.open_connections.mark_idle(self)
        else:
            self.open_connections.mark_busy(self)

    def _update_head_timer(self) -> None:
        """Start the timer if a head is awaited; a complete head stops it. Further bytes of a head do not restart it."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._on_head_timeout)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        """Wait once more: if the loop was slow, the head may have arrived, but timers run before reads."""
        self._head_timer = self.loop.call_later(HEAD_GRACE_S, self._close_without_head)

    def _close_without_head(self) -> None:
        """Answer 408 if part of a head has arrived; otherwise just close."""
        if self.conn.trailing_data[0]:
            self._reject(request_timeout())
        else:
            self.transport.close()

    @property
    def _is_next_waiting(self) -> bool:
        """True if reading is paused because more has arrived than the request that is being answered."""
        return self.conn.their_state is h11.DONE and self.flow.read_paused

    def _update_leaving_timer(self) -> None:
        """Start the timer if the next request waits."""
        if self._leaving_timer is None and self._is_next_waiting and not self.transport.is_closing():
            self._leaving_timer = self.loop.call_later(self.leaving_check_s, self._on_leaving_check)

    def _on_leaving_check(self) -> None:
        self._leaving_timer = None
        if self._is_next_waiting and has_left(self.transport):
            self.transport.abort()
        else:
            self._update_leaving_timer()

    def _stop_leaving_timer(self) -> None:
        if self._leaving_timer is not None:
            self._leaving_timer.cancel()
            self._leaving_timer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_stall_timer()

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    def _start_stall_timer(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(self.stall_timeout_s, self._on_stall_timeout, unsent)

    def _on_stall_timeout(self, unsent_before: int) -> None:
        """Abort the connection unless the client has read something. A close would wait for the client."""
        self._stall_timer = None
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0:
            return
        if unsent < unsent_before:
            self._start_stall_timer()
        else:
            self.transport.abort()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def send_400_response(self, msg: str) -> None:
        """Answer with the API's error. uvicorn calls this while it handles h11's exception."""
        error = sys.exception()
        is_too_large = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
        self._reject(headers_too_large() if is_too_large else malformed_request())

    def _reject(self, error: ApiError) -> None:
        """Send the error, unless a response has begun, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = orjson.dumps(error.body())
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "x-content-type-options": "nosniff",
                "x-request-id": secrets.token_hex(16),
                **error.headers,
            }
            reason = HTTPStatus(error.status).phrase
            response = h11.Response(status_code=error.status, headers=list(headers.items()), reason=reason.encode())
            content = () if self.conn._request_method == b"HEAD" else (h11.Data(data=body),)
            for event in (response, *content, h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.on_rejection(error.status)
        if self.cycle is not None:  # the head was valid: the app has begun, or will, and must not answer too
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def has_left(transport: asyncio.BaseTransport) -> bool:
    """Return whether the client has closed the connection, or its sending side, although not all of it is read."""
    connected = transport.get_extra_info("socket")
    if connected is None or connected.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(connected.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))
