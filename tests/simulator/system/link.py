"""The socket pair between the server and an engine process, as a link that splits, delays and cuts what is sent.

As with a real pair nothing is lost, doubled or reordered, and what was sent before the end of a process still arrives.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from functools import partial


class Pipe:
    """One direction: bytes arrive in order, in pieces, later; then the end, once."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        max_delay_s: float,
        on_bytes: Callable[[bytes], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loop, self._rng, self._max_delay_s = loop, rng, max_delay_s
        self._on_bytes, self._on_end = on_bytes, on_end
        self._last_s = 0.0  # when the last piece arrives
        self._arrivals: deque[Callable[[], None]] = deque()
        self._is_closed = False

    def send(self, sent: bytes) -> None:
        """Send bytes, in up to three pieces."""
        if self._is_closed or not sent:
            return
        cuts = sorted(self._rng.randrange(len(sent)) for _ in range(self._rng.choice((0, 0, 0, 1, 2))))
        for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            if start < end:
                self._at_arrival(self._on_bytes, sent[start:end])

    def end(self, extra_s: float = 0.0) -> None:
        """Report the end after all bytes. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._last_s = max(self._last_s, self._loop.time()) + extra_s
            self._at_arrival(self._on_end)

    def _at_arrival(self, callback: Callable[..., None], *arguments: bytes) -> None:
        delay_s = self._rng.random() * self._max_delay_s if self._rng.random() < 0.3 else 0.0
        self._last_s = max(self._last_s, self._loop.time() + delay_s)
        self._arrivals.append(partial(callback, *arguments))
        self._loop.call_at(self._last_s, self._arrive)

    def _arrive(self) -> None:
        """Let the next piece arrive: timers of the same time run in any order, pieces must not."""
        self._arrivals.popleft()()


class ServerEnd(asyncio.Transport):
    """The transport that the server's protocol writes to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop, self._protocol = loop, protocol
        self.to_engine: Pipe | None = None
        self._is_closing = self._is_lost = self._is_paused = False
        self._unread: list[bytes] = []  # arrived while reading was paused

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.to_engine is not None and not self._is_closing:
            self.to_engine.send(bytes(data))

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            if self.to_engine is not None:
                self.to_engine.end()
            self._loop.call_soon(self._lose)

    def receive(self, received: bytes) -> None:
        """Pass bytes of the engine to the protocol, as asyncio does until the transport is closed."""
        if self._is_paused:
            self._unread.append(received)
        elif not self._is_closing:
            self._protocol.data_received(received)

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        while self._unread and not self._is_paused:
            self.receive(self._unread.pop(0))

    def receive_end(self) -> None:
        assert not self._is_paused, "messages of a simulation are too small for that"
        self._is_closing = True
        self._lose()

    def _lose(self) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._protocol.connection_lost(None)
