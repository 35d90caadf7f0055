"""Accept connections from the listening socket and count each from that moment on, before its TLS handshake."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from functools import partial

from server.http.bounded_reads import BoundedReadProtocol
from server.http.client_hello import wait_for_client_hello
from server.http.limits.read_limiter import ReadLimiter
from server.http.listener import is_unix

ACCEPTS_PER_ITERATION = (
    64  # with one, thousands of simultaneous connections and health checks would wait for each other
)
HANDSHAKE_TIMEOUT_S = 10.0
# The system takes so much that could not be sent yet, and not 4 MB, as Linux does: a stream whose client does not read
# pauses after about 300 kB instead of being rendered to its end.
UNSENT_BYTES = 128 << 10
RETRY_S = 0.1  # after an accept without a free file descriptor


class Acceptor:
    """Makes a protocol of each accepted connection. The expensive part of TLS handshakes takes turns with reads."""

    handshake_timeout_s = HANDSHAKE_TIMEOUT_S

    def __init__(
        self,
        listener: socket.socket,
        new_protocol: Callable[[], BoundedReadProtocol],
        read_limiter: ReadLimiter,
        tls: ssl.SSLContext | None,
    ) -> None:
        """`listener` is not closed by this. `read_limiter`: the one of the protocols."""
        self._listener = listener
        self._new_protocol = new_protocol
        self._read_limiter = read_limiter
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Accept from now on."""
        self._listener.setblocking(False)
        self._retry = None
        self._loop.add_reader(self._listener, self._accept)

    def stop(self) -> None:
        """Stop accepting. Connections that wait in the system's queue stay there. Idempotent."""
        self._loop.remove_reader(self._listener)
        if self._retry is not None:
            self._retry.cancel()

    def abort_handshakes(self) -> None:
        """Close the connections that have not become one of the protocol's yet."""
        for task in self._opening:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_ITERATION):
            try:
                connected, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor or memory is free
                self.stop()
                self._retry = self._loop.call_later(RETRY_S, self.start)
                return
            self._begin(connected)

    def _begin(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        if not is_unix(connected):  # which sends at once, and of which Linux takes 208 kB at most
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a stream's events are small
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        protocol = self._new_protocol()
        task = self._loop.create_task(self._open(connected, protocol))
        self._opening.add(task)
        task.add_done_callback(partial(self._on_opened, connected, protocol))
        protocol.accepted(task.cancel)

    async def _open(self, connected: socket.socket, protocol: BoundedReadProtocol) -> None:
        if self._tls is None:
            await self._loop.connect_accepted_socket(lambda: protocol, connected)
            return
        async with asyncio.timeout(self.handshake_timeout_s):
            await wait_for_client_hello(connected)
            await self._read_limiter.turn()
            await self._loop.connect_accepted_socket(
                lambda: protocol, connected, ssl=self._tls, ssl_handshake_timeout=self.handshake_timeout_s
            )

    def _on_opened(self, connected: socket.socket, protocol: BoundedReadProtocol, task: asyncio.Task[None]) -> None:
        """Release a connection that failed: a handshake is refused, late or aborted, or the client is gone."""
        self._opening.discard(task)
        if task.cancelled() or task.exception() is not None:
            protocol.refused()
            with contextlib.suppress(OSError):
                connected.close()
