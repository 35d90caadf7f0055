"""Small reads that take turns, so that neither one client nor many at once block the event loop for long."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn
from uvicorn.server import ServerState as UvicornState

from server.http.connections import Connections
from server.http.limits.read_limiter import ReadLimiter
from server.http.protocol import Connection, has_left

# A body in chunks of one byte costs the parser about 10 us per 6 bytes read, and libuv reads up to 32 times per loop
# iteration: at most 60 ms with reads of 1 KiB, more than a second with 256 KiB.
READ_BYTES = 1024
# Of a body with a content-length, which costs the parser about the same for each read. Such a read never goes beyond
# the body: what follows may be the chunks of another one.
BODY_READ_BYTES = 16 << 10
# First bytes of requests that are never deferred.
PRIORITY_PREFIXES = tuple(b"GET %s" % path for path in (b"/health", b"/ping", b"/metrics"))


class BoundedReadProtocol(asyncio.BufferedProtocol):
    """Protocol of one socket: reads at most READ_BYTES at a time, or BODY_READ_BYTES of a body that has a length, and
    passes them to a Connection.

    Each read needs a permit, of one limiter outside bodies and of another one for bodies; without one the socket is
    paused until the read's turn comes.
    """

    _transport: asyncio.Transport | None = None  # None before and after the connection
    _unparsed = b""
    _tenant: int | None = None  # of the current request; None until its API key has arrived

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: UvicornState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        on_http: Callable[[str, str, int], None],
        connections: Connections,
        read_limiter: ReadLimiter,
        body_limiter: ReadLimiter,
        tenant_of: Callable[[bytes], int | None] = lambda data: None,
    ) -> None:
        """The first four arguments are uvicorn's; all connections share `connections` and both limiters.

        `on_http` receives (route, method, status) of each error that is sent before a request reaches the app.
        `tenant_of` returns the tenant whose API key is in the bytes of a head, None if there is no known key.
        """
        self._read_limiter = read_limiter
        self._body_limiter = body_limiter
        self._tenant_of = tenant_of
        self._connection = Connection(config, server_state, app_state, _loop)
        self._connection.on_rejection = partial(on_http, "other", "other")
        self._connection.open_connections = connections
        self._small_buffer = memoryview(bytearray(READ_BYTES))  # asyncio's TLS writes into slices of it
        self._buffer = self._small_buffer  # of the next read

    def accepted(self, abort: Callable[[], object]) -> None:
        """Count the connection before it is made. `abort` closes it until `connection_made`."""
        self._connection.on_accepted(abort)

    def refused(self) -> None:
        """Count the connection no more, because it was not made."""
        self._connection.on_refused()

    def get_buffer(self, sizehint: int) -> memoryview:
        size = min(BODY_READ_BYTES, self._connection.body_bytes_left - len(self._unparsed))
        if size > READ_BYTES:
            self._buffer = memoryview(bytearray(size))
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._buffer[:nbytes])
        self._buffer = self._small_buffer
        if not self._connection.is_reading_body:
            self._note_tenant(data)
        if self._unparsed:
            self._unparsed += data
        elif self._may_read(data):
            self._connection.data_received(data)
        elif self._transport is not None:
            self._unparsed = data
            self._transport.pause_reading()
            self._connection.on_read_deferred()
            self._limiter.defer(self._parse, self._tenant)

    def _note_tenant(self, data: bytes) -> None:
        """Remember whose request it is. A head's later bytes contain no key and change nothing."""
        tenant = self._tenant_of(data)
        if tenant is not None:
            self._tenant = tenant

    def _may_read(self, data: bytes) -> bool:
        return self._limiter.try_acquire() or (
            data.startswith(PRIORITY_PREFIXES) and not self._connection.is_reading_body
        )

    @property
    def _limiter(self) -> ReadLimiter:
        return self._body_limiter if self._connection.is_reading_body else self._read_limiter

    def _parse(self) -> None:
        data, self._unparsed = self._unparsed, b""
        if self._transport is None or self._transport.is_closing():
            return
        if has_left(self._transport):
            self._transport.abort()  # nobody reads the answer: parse nothing
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
