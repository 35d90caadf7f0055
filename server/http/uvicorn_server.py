"""Run uvicorn with this server's settings and own sockets, and count the requests that it is answering."""

import asyncio
import contextlib
import math
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.acceptor import Acceptor
from server.http.bounded_reads import BoundedReadProtocol
from server.http.certificate import check_certificate
from server.http.limits.read_limiter import ReadLimiter
from server.http.protocol import MAX_HEAD_BYTES
from server.settings.settings import Settings


class RequestTracker:
    """ASGI middleware that counts the HTTP requests being answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._num_requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._num_requests += 1
        self._idle.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_requests -= 1
            if self._num_requests == 0:
                self._idle.set()

    @property
    def num_requests(self) -> int:
        """Requests being answered."""
        return self._num_requests

    async def wait_idle(self, timeout_s: float) -> None:
        """Wait until no request is being answered, at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers and sockets: see server/lifecycle/shutdown.py and server/http/acceptor.py.

    uvicorn's handlers would close the listening socket first, wait without a limit and raise the signal again.
    """

    def __init__(
        self,
        app: ASGIApp,
        protocol: Callable[..., BoundedReadProtocol],
        settings: Settings,
        *,
        read_limiter: ReadLimiter,
        flush_s: float,
        accepts_at_once: bool = True,
    ) -> None:
        """`protocol` takes uvicorn's arguments. `flush_s`: time for the last responses to be sent during shutdown, in
        seconds. Unless it accepts at once, connections wait until `accept`. Raises CertificateError."""
        config = uvicorn.Config(
            app,
            http=protocol,  # type: ignore[arg-type]  # uvicorn's type lacks asyncio.BufferedProtocol
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive_timeout,
            timeout_graceful_shutdown=math.ceil(flush_s),
            ssl_keyfile=settings.ssl_keyfile,
            ssl_certfile=settings.ssl_certfile,
        )
        self.certificate_fault = ""  # why clients refuse the certificate
        if settings.ssl_certfile is not None and settings.ssl_keyfile is not None:
            self.certificate_fault = check_certificate(settings.ssl_certfile, settings.ssl_keyfile).fault
        config.load()
        super().__init__(config)
        self._read_limiter = read_limiter
        self._accepts_at_once = accepts_at_once
        self._acceptor: Acceptor | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections from the only socket."""
        assert sockets is not None
        (listener,) = sockets
        self.servers = []  # uvicorn's own
        self._acceptor = Acceptor(listener, self._new_protocol, self._read_limiter, self.config.ssl)
        if self._accepts_at_once:
            self._acceptor.start()
        self.started = True

    def accept(self) -> None:
        """Accept connections from now on, if the server did not from the start."""
        self._accepts_at_once = True
        if self._acceptor is not None:
            self._acceptor.start()

    def stop_accepting(self) -> None:
        """Leave further connections to another process that has the same listening socket."""
        if self._acceptor is not None:
            self._acceptor.stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the socket and the idle connections, and wait for the others."""
        assert self._acceptor is not None
        self._acceptor.stop()
        self._acceptor.abort_handshakes()
        await super().shutdown(sockets)

    def _new_protocol(self) -> BoundedReadProtocol:
        made = self.config.http_protocol_class(config=self.config, server_state=self.server_state, app_state={})  # type: ignore[call-arg]
        assert isinstance(made, BoundedReadProtocol)
        return made

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
