"""Limit the number of open connections, with a reserve for health checks and metrics."""

import asyncio
import resource
from typing import Protocol

MAX_OPEN = 16_384
RESERVE = 8  # connections beyond the limit, which get only health and metrics
OTHER_FILES = 32  # file descriptors that are no connections: listener, event loop, engine, log, libraries


class Closable(Protocol):
    """A connection."""

    def abort(self) -> None:
        """Close it without waiting for anything."""
        ...

    def finish(self) -> None:
        """Close it after the response that is being sent; at once if there is none and no request has begun."""
        ...


class Connections:
    """Counts open connections and drops idle ones at the limit.

    A connection is idle while the client has no complete request in it. At the limit the connection that has been idle
    longest makes room for a new one, so that a client that sends nothing, or a request byte by byte, never keeps others
    out.
    """

    def __init__(self, max_open: int = MAX_OPEN, reserve: int = RESERVE) -> None:
        self._max_open = max_open
        self._reserve = reserve
        self._open: set[Closable] = set()
        self._idle: dict[Closable, None] = {}  # longest idle first
        self.is_finishing = False  # each connection is closed after its next response
        self._none_open = asyncio.Event()
        self._none_open.set()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def is_full(self) -> bool:
        """True if more connections than the limit are open, which happens only when nearly all are busy."""
        return len(self._open) > self._max_open

    def opened(self, connection: Closable) -> None:
        """Add a new, idle connection, and drop one if there are too many.

        The newest idle connections form the reserve: they are kept as long as they are few.
        """
        self._open.add(connection)
        self._none_open.clear()
        self._idle[connection] = None
        if self.is_full and len(self._idle) > self._reserve:
            self._drop(next(iter(self._idle)))
        elif len(self._open) > self._max_open + self._reserve:
            self._drop(connection)

    def mark_idle(self, connection: Closable) -> None:
        """Record that the connection waits for its client. One that is idle already keeps its place."""
        if connection in self._open:
            self._idle.setdefault(connection)

    def mark_busy(self, connection: Closable) -> None:
        """Record that a complete request has arrived and is not answered yet."""
        self._idle.pop(connection, None)

    def closed(self, connection: Closable) -> None:
        """Remove a connection. Idempotent."""
        self._open.discard(connection)
        self._idle.pop(connection, None)
        if not self._open:
            self._none_open.set()

    def finish_idle(self) -> None:
        """Close the connections without a request, and the others after their responses."""
        for connection in list(self._open):
            connection.finish()

    async def wait_none(self) -> None:
        """Wait until no connection is open."""
        await self._none_open.wait()

    def _drop(self, connection: Closable) -> None:
        self.closed(connection)
        connection.abort()


def raise_file_limit() -> int:
    """Raise this process' limit of file descriptors as far as needed and allowed; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MAX_OPEN + RESERVE + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return needed if soft == resource.RLIM_INFINITY else soft


def max_connections(num_files: int) -> int:
    """Return how many connections fit into a limit of `num_files` descriptors: 24 for 64, 984 for 1,024."""
    return max(1, min(MAX_OPEN, num_files - OTHER_FILES - RESERVE))
