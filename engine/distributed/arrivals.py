"""Connections of ranks that are not in the group yet. Whoever reaches the port can open one, so nothing waits for it:
packets are read as far as they have come, and strangers are bounded in number and time.
"""

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from engine.distributed.packets import HEADER, KINDS, PacketKind

HELLO_S = 10.0  # for a connection to say which rank it is
MAX_STRANGERS = 64  # connections that have not said it; one more ends the oldest
MAX_BYTES = 1 << 16  # of a packet
KEEPALIVE = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}  # gone after 20 s of silence

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
    """All connections, by descriptor."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_fd: dict[int, Guest] = {}  # in the order of arrival

    def __iter__(self) -> Iterator[Guest]:
        return iter(list(self._by_fd.values()))

    def __len__(self) -> int:
        return len(self._by_fd)

    def __getitem__(self, fd: int) -> Guest:
        return self._by_fd[fd]

    def __contains__(self, fd: int) -> bool:
        return fd in self._by_fd

    def accept(self, listener: socket.socket) -> int:
        """Accept a connection and return its descriptor. Raises OSError, also if it is gone again."""
        connection, address = listener.accept()
        connection.setblocking(False)
        for option, value in KEEPALIVE.items():  # a host that vanishes while others are awaited may come again
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._by_fd[connection.fileno()] = Guest(connection, address[0], self._clock())
        return connection.fileno()

    def send_away(self, fd: int) -> None:
        """Close a connection."""
        self._by_fd.pop(fd).connection.close()

    def unwelcome(self) -> list[int]:
        """Return the descriptors of the strangers that are too many, the oldest, or have been silent for too long."""
        strangers = [fd for fd, guest in self._by_fd.items() if guest.rank is None]
        oldest = strangers[: max(0, len(strangers) - MAX_STRANGERS)]
        latest_s = self._clock() - HELLO_S
        return [fd for fd in strangers if fd in oldest or self._by_fd[fd].arrival_s <= latest_s]

    def close(self) -> None:
        """Close all connections."""
        for guest in self:
            guest.connection.close()
