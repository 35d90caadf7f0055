"""Bound the memory of grammar parsers: work that makes one waits until another one is gone."""

from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from engine.grammars.fair_thread import FairThread

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
    seven of eight, so that another one does not wait for the end of a text.
    """

    def __init__(self, num_places: int, thread: FairThread) -> None:
        self._num_places = num_places
        self._thread = thread
        self._held: Counter[int] = Counter()
        self._freed: deque[int] = deque()
        self._tenants: set[int] = set()
        self._waiting: dict[int, deque[tuple[Future[object], Callable[[Place], object]]]] = {}

    def submit(self, tenant: int, work: Callable[[Place], T]) -> "Future[T]":
        """Queue work, which gets its place. The future can be cancelled until the work starts."""
        future: Future[T] = Future()
        self._tenants.add(tenant)
        self._waiting.setdefault(tenant, deque()).append((future, work))  # type: ignore[arg-type]
        self.give_out()
        return future

    def give_out(self) -> None:
        """Start waiting work for which there is a place now."""
        while self._freed:
            self._held[self._freed.popleft()] -= 1
        while (tenant := self._next_tenant()) is not None:
            future, work = self._waiting[tenant].popleft()
            if not self._waiting[tenant]:
                del self._waiting[tenant]
            if not future.cancelled():
                self._held[tenant] += 1
                self._start(tenant, future, work)

    def _next_tenant(self) -> int | None:
        """Return whose work is next, None if there is no place for any."""
        kept_free = max(1, self._num_places // 8) if len(self._tenants) > 1 and self._num_places > 1 else 0
        may_start = [tenant for tenant in self._waiting if self._held[tenant] < self._num_places - kept_free]
        if not may_start or self._held.total() >= self._num_places:
            return None
        return min(may_start, key=lambda tenant: self._held[tenant])

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
