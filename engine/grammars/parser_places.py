"""Bound the memory of grammar parsers: work that makes one waits until another one is gone."""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from engine.config import max_slots_per_tenant
from engine.grammars.fair_thread import FairThread

MIN_FIRST_PLACES = 3  # so many tenants get a place at once, or half as many as there are places if that is more

T = TypeVar("T")


class Place:
    """The right to keep one parser. Whatever holds the parser holds its place; the end of the object frees it."""

    def __init__(self, tenant: int, freed: deque[int]) -> None:
        self._tenant = tenant
        self._freed = freed

    def __del__(self) -> None:
        self._freed.append(self._tenant)  # in whichever thread drops the last reference


class ParserPlaces:
    """Runs work that makes parsers on a thread, as long as there is a place for each. Only one thread may call it.

    A free place goes to the waiting tenant that holds the fewest. Where there are several tenants, none holds more than
    seven of eight, and places are kept for tenants that hold none, so that these do not wait for the end of a text.
    """

    def __init__(self, num_places: int, thread: FairThread, num_tenants: int = 1) -> None:
        """`num_tenants`: of the server, whether they send grammars or not."""
        self._num_places = num_places
        self._thread = thread
        self._num_tenants = num_tenants
        self._most_per_tenant = max_slots_per_tenant(num_places) if num_tenants > 1 else num_places
        self._num_first_places = min(num_places, num_tenants, max(MIN_FIRST_PLACES, num_places // 2))
        self._held: Counter[int] = Counter()
        self._freed: deque[int] = deque()
        self._waiting: dict[int, OrderedDict[Future[Any], Callable[[Place], object]]] = {}

    def submit(self, tenant: int, work: Callable[[Place], T]) -> "Future[T]":
        """Queue work, which gets its place. cancel() takes it back until it starts."""
        future: Future[T] = Future()
        self._waiting.setdefault(tenant, OrderedDict())[future] = work
        self.give_out()
        return future

    def cancel(self, tenant: int, future: "Future[Any]") -> bool:
        """Cancel work that submit() has queued. What waits for a place is dropped at once, since it holds a grammar's
        text. Return False if it has started."""
        is_cancelled = future.cancel()
        if is_cancelled and future in self._waiting.get(tenant, ()):
            self._remove(tenant, future)
        return is_cancelled

    def give_out(self) -> None:
        """Start waiting work for which there is a place now."""
        while self._freed:
            self._held[self._freed.popleft()] -= 1
        while (tenant := self._next_tenant()) is not None:
            future = next(iter(self._waiting[tenant]))
            work = self._remove(tenant, future)
            self._held[tenant] += 1
            self._start(tenant, future, work)

    def _remove(self, tenant: int, future: "Future[Any]") -> Callable[[Place], object]:
        """Return the work of a future that waits for a place, and forget both."""
        work = self._waiting[tenant].pop(future)
        if not self._waiting[tenant]:
            del self._waiting[tenant]
        return work

    def _next_tenant(self) -> int | None:
        """Return whose work is next, None if there is no place for any."""
        num_free = self._num_places - self._held.total()
        num_holders = sum(count > 0 for count in self._held.values())
        has_more = num_free > max(0, self._num_first_places - num_holders)  # than what is kept for first places
        may_start = [
            tenant
            for tenant in self._waiting
            if not self._held[tenant] or (has_more and self._held[tenant] < self._most_per_tenant)
        ]
        return min(may_start, key=lambda tenant: self._held[tenant]) if may_start and num_free > 0 else None

    def _start(self, tenant: int, future: "Future[object]", work: Callable[[Place], object]) -> None:
        place = Place(tenant, self._freed)

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work(place)
            except BaseException as error:  # noqa: BLE001 (it is the caller's; a panic is not an Exception)
                future.set_exception(error.with_traceback(None))  # the frames of a traceback would hold the place
            else:
                future.set_result(result)

        self._thread.submit(tenant, run)
