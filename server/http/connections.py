"""The open connections, and how many there may be. A descriptor is kept for whoever asks for the server's health."""

import resource
from typing import Protocol

from server.http.listener import ACCEPTORS, num_acceptors

MAX_OPEN = 16_384
RESERVE = 8  # connections beyond the limit, that only ask for health and metrics
OTHER_FILES = 32  # descriptors that are no connections: loop, engine, log, libraries


class Closable(Protocol):
    """A connection."""

    def abort(self) -> None:
        """Closes it, without waiting for anything."""
        ...


class Connections:
    """Counts connections. At the limit the one that has waited for its client longest makes room for a new one: who
    keeps a connection idle, or sends a request byte by byte, never keeps others out."""

    def __init__(self, max_open: int = MAX_OPEN, reserve: int = RESERVE) -> None:
        self._max_open = max_open
        self._reserve = reserve
        self._open: set[Closable] = set()
        self._waiting: dict[Closable, None] = {}  # for the client to send a request, or its rest: oldest first

    def __len__(self) -> int:
        return len(self._open)

    @property
    def is_full(self) -> bool:
        """Whether more connections are open than may be, and all of them have work."""
        return len(self._open) > self._max_open

    def opened(self, connection: Closable) -> None:
        """A new one, which waits for its client. Where nearly all have work, the newest that wait are the reserve."""
        self._open.add(connection)
        self._waiting[connection] = None
        if self.is_full and len(self._waiting) > self._reserve:
            self._drop(next(iter(self._waiting)))
        elif len(self._open) > self._max_open + self._reserve:
            self._drop(connection)

    def mark_idle(self, connection: Closable) -> None:
        """It waits for its client; one that did so before keeps its place."""
        if connection in self._open:
            self._waiting.setdefault(connection)

    def mark_busy(self, connection: Closable) -> None:
        """Its request is complete, and not yet answered."""
        self._waiting.pop(connection, None)

    def closed(self, connection: Closable) -> None:
        """Idempotent."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)

    def _drop(self, connection: Closable) -> None:
        self.closed(connection)
        connection.abort()


def raise_file_limit() -> int:
    """Descriptors that this process may have, after it asked for as many as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = MAX_OPEN + RESERVE + OTHER_FILES + ACCEPTORS
    if soft != resource.RLIM_INFINITY and soft < enough:
        wanted = enough if hard == resource.RLIM_INFINITY else min(hard, enough)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return enough if soft == resource.RLIM_INFINITY else soft


def max_connections(num_files: int) -> int:
    """How many connections fit beside everything else: of 64 descriptors 23, of 1,024 983."""
    return max(1, min(MAX_OPEN, num_files - OTHER_FILES - RESERVE - num_acceptors(num_files)))
