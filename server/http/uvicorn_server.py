"""Run uvicorn with this server's settings, and count the requests that it is answering."""

import asyncio
import contextlib
import math
import ssl
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.protocol import MAX_HEAD_BYTES
from server.settings.settings import Settings


class CertificateError(Exception):
    """The given files are not a certificate and its key. One line."""


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

    async def wait_idle(self, timeout_s: float) -> None:
        """Wait until no request is being answered, at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers; server/lifecycle/shutdown.py handles signals.

    uvicorn's handlers would close the listening socket first, wait without a limit and raise the signal again.
    """

    def __init__(
        self, app: ASGIApp, protocol: Callable[..., asyncio.BaseProtocol], settings: Settings, flush_s: float
    ) -> None:
        """`flush_s`: time for the last responses to be sent during shutdown, in seconds. Raises CertificateError."""
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
            timeout_graceful_shutdown=math.ceil(flush_s),
            ssl_keyfile=settings.ssl_keyfile,
            ssl_certfile=settings.ssl_certfile,
        )
        try:
            config.load()
        except (ssl.SSLError, OSError):
            raise CertificateError("--ssl-certfile, --ssl-keyfile: these are not a certificate and its key") from None
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
