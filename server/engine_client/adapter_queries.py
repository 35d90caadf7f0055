"""LoRA adapters that are loaded and unloaded while the engine runs.

An unloaded adapter has no name any more, so that no new request gets it; the engine frees it when the last request that
has it has ended, and when nobody holds it: an HTTP request may have none in the engine yet, or none between two of its
parts. Sans-IO but for the futures: callers report events, and it sends messages.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

from engine.messages import AdapterLoaded, LoadAdapter, UnloadAdapter
from server.engine_client.output_collector import EngineDied


class AdapterError(Exception):
    """An adapter cannot be loaded. The message is one line for the operator, and may contain paths."""


class AdapterQueries:
    """The open queries of one client, and the adapters that wait to be freed."""

    def __init__(self, send: Callable[[LoadAdapter | UnloadAdapter], None], is_used: Callable[[str], bool]) -> None:
        """`is_used`: whether a request that has not ended has the adapter with this digest."""
        self._send = send
        self._is_used = is_used
        self._last_query_id = 0
        self._open: dict[int, tuple[LoadAdapter, asyncio.Future[None]]] = {}
        self._unused: set[str] = set()  # digests without a name, to be freed
        self._held: Counter[str] = Counter()  # by digest

    @property
    def loading(self) -> frozenset[str]:
        """Names of the adapters that the engine is asked to load, also of those whose callers are gone."""
        return frozenset(query.name for query, _ in self._open.values())

    def load(self, name: str, directory: str) -> asyncio.Future[None]:
        """Ask the engine to load an adapter. The future raises AdapterError, and EngineDied."""
        if name in self.loading:
            raise AdapterError(f"an adapter {name!r} is being loaded")
        self._last_query_id += 1
        query = LoadAdapter(self._last_query_id, name, directory)
        self._open[query.query_id] = query, asyncio.get_running_loop().create_future()
        self._send(query)
        return self._open[query.query_id][1]

    def resolve(self, reply: AdapterLoaded) -> LoadAdapter | None:
        """Take the engine's answer; return the query whose adapter is loaded now, or None if it is not."""
        query, future = self._open.pop(reply.query_id)
        if future.cancelled():
            future = asyncio.get_running_loop().create_future()
        if reply.error is None:
            future.set_result(None)
            return query
        future.set_exception(AdapterError(reply.error))
        future.exception()  # marks it as retrieved: the caller may have been cancelled
        return None

    def unload(self, digest: str) -> None:
        """Free the adapter with this digest, which has no name any more, as soon as no request has it."""
        self._unused.add(digest)

    def hold(self, digest: str) -> None:
        """Do not free the adapter with this digest before release() is called as often."""
        self._held[digest] += 1

    def release(self, digest: str) -> None:
        """End one hold()."""
        self._held[digest] -= 1
        if not self._held[digest]:
            del self._held[digest]

    def free_unused(self, named: Mapping[str, str]) -> None:
        """Let the engine free the adapters that no request has. `named`: the digests of all adapters with a name.

        Nothing is freed while an adapter is loaded: it may be the same one, under a new name.
        """
        if not self._unused or self._open:
            return
        self._unused -= set(named.values())
        for digest in [digest for digest in self._unused if not (digest in self._held or self._is_used(digest))]:
            self._unused.discard(digest)
            self._send(UnloadAdapter(digest))

    def fail(self, reason: str) -> None:
        """Raise EngineDied(reason) in all waiting callers, and forget what the engine had."""
        for _, future in self._open.values():
            if not future.done():
                future.set_exception(EngineDied(reason))
                future.exception()
        self._open.clear()
        self._unused.clear()
