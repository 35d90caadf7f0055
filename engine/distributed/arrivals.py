"""Connections of ranks that are not in the group yet. Whoever reaches the port can open one, so nothing waits for it:
packets are read as far as they have come, and strangers are bounded in number and time.
"""

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from engine.distributed.keepalive import limit_silence
from engine.distributed.packets import HEADER, KINDS, PacketKind

HELLO_S = 10.0  # for a connection to say which rank it is
LOOK_S = 0.2  # that a look at all connections lasts at most
MAX_STRANGERS = 64  # connections that have not said it; one more ends the oldest
MAX_BYTES = 1 << 16  # of a packet
ENDED = select.POLLRDHUP | select.POLLHUP | select.POLLERR  # nothing more comes than what is there

Packet = tuple[PacketKind, bytes]


@dataclass
class Guest:
    """A connection, and what is known about it."""

    connection: socket.socket
    address: str
    arrival_s: float = 0.0
    rank: int | None = None  # after HELLO
    is_present: bool = False  # after DESCRIBED
    received: bytearray = field(default_factory=bytearray)  # of a packet that is not complete

    def receive(self) -> Packet | None:
        """Receive what there is; return a packet if it is complete. Never waits.

        Raises ConnectionError at the end of the connection, and for a packet that is too large or of no known kind.
        """
        wanted = self._wanted()
        try:
            content = self.connection.recv(wanted)
        except BlockingIOError:
            return None
        if not content:
            raise ConnectionResetError
        self.received += content
        if self._wanted():
            return None
        packet = PacketKind(self.received[0]), bytes(self.received[HEADER.size :])
        self.received.clear()
        return packet

    def _wanted(self) -> int:
        """Return the number of bytes that the header or else the packet lacks. Raises ConnectionError."""
        if len(self.received) < HEADER.size:
            return HEADER.size - len(self.received)
        kind, length = HEADER.unpack_from(self.received)
        if length > MAX_BYTES or kind not in KINDS:
            raise ConnectionError("this is no packet of a rank")
        return HEADER.size + int(length) - len(self.received)


class Guests:
    """All connections to a listener, by descriptor."""

    def __init__(self, listener: socket.socket, clock: Callable[[], float] = time.monotonic) -> None:
        """`listener` listens; the caller keeps it."""
        self._listener = listener
        self._clock = clock
        self._poll = select.poll()
        listener.setblocking(False)
        self._poll.register(listener, select.POLLIN)
        self._by_fd: dict[int, Guest] = {}  # in the order of arrival

    def __iter__(self) -> Iterator[Guest]:
        return iter(list(self._by_fd.values()))

    def __len__(self) -> int:
        return len(self._by_fd)

    def look(self, hear: Callable[[Guest], bool]) -> None:
        """Accept and receive what there is; wait for it for LOOK_S at most. `hear` receives what a guest sends, and
        returns False if the connection is of no more use.

        Guests that have ended are heard to their last word and released before any other is heard: a rank may have
        ended and come again since the last look. Raises OSError.
        """
        events = dict(self._poll.poll(LOOK_S * 1000))
        for fd in [fd for fd, event in events.items() if event & ENDED]:
            while fd in self._by_fd:
                self._hear(fd, hear)
        for fd in events:
            if fd in self._by_fd:
                self._hear(fd, hear)
        for fd in self._unwelcome():
            self.release(self._by_fd[fd]).close()
        if self._listener.fileno() in events:
            with suppress(BlockingIOError, ConnectionError):  # gone again
                self._accept()

    def release(self, guest: Guest) -> socket.socket:
        """Return the connection of a guest, which is none any more."""
        self._poll.unregister(guest.connection)
        return self._by_fd.pop(guest.connection.fileno()).connection

    def close(self) -> None:
        """Close all connections."""
        for guest in self:
            guest.connection.close()

    def _hear(self, fd: int, hear: Callable[[Guest], bool]) -> None:
        """Hear a guest once; close its connection if it is of no more use."""
        guest = self._by_fd[fd]
        if not hear(guest):
            self.release(guest).close()

    def _accept(self) -> None:
        connection, address = self._listener.accept()
        connection.setblocking(False)
        limit_silence(connection)  # a host that vanishes while others are awaited may come again
        self._by_fd[connection.fileno()] = Guest(connection, address[0], self._clock())
        self._poll.register(connection, select.POLLIN | select.POLLRDHUP)

    def _unwelcome(self) -> list[int]:
        """Return the descriptors of the strangers that are too many, the oldest, or have been silent for too long."""
        strangers = [fd for fd, guest in self._by_fd.items() if guest.rank is None]
        oldest = strangers[: max(0, len(strangers) - MAX_STRANGERS)]
        latest_s = self._clock() - HELLO_S
        return [fd for fd in strangers if fd in oldest or self._by_fd[fd].arrival_s <= latest_s]
