"""A thread whose work waits by tenant: the tenant that has used the least of its CPU time is next."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class FairThread:
    """One thread. A tenant's work runs in order of arrival, and waits for at most one piece of each other tenant's
    before a tenant that has used as much gets its turn. submit() is safe to call from any thread.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.thread_time) -> None:
        """`clock`: seconds of CPU time of the calling thread."""
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[int, deque[tuple[Future[Any], Callable[[], Any]]]] = {}
        self._used_s: dict[int, float] = {}
        self._floor_s = 0.0  # of the tenant that was last: what a newcomer starts with

    def submit(self, tenant: int, work: Callable[[], T]) -> "Future[T]":
        """Queue work. The future can be cancelled until the work starts."""
        future: Future[T] = Future()
        with self._lock:
            if tenant not in self._waiting:
                self._waiting[tenant] = deque()
                self._used_s[tenant] = max(self._used_s.get(tenant, 0.0), self._floor_s)
            self._waiting[tenant].append((future, work))
        self._executor.submit(self._run_next)
        return future

    def _run_next(self) -> None:
        """Run one piece of work: as many calls are queued as there is work."""
        tenant, future, work = self._take_next()
        if not future.set_running_or_notify_cancel():
            return
        start_s = self._clock()
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 (it is the caller's; a panic is not an Exception)
            future.set_exception(error)
        else:
            future.set_result(result)
        with self._lock:
            self._used_s[tenant] += self._clock() - start_s

    def _take_next(self) -> tuple[int, "Future[Any]", Callable[[], Any]]:
        with self._lock:
            tenant = min(self._waiting, key=lambda tenant: (self._used_s[tenant], tenant))
            self._floor_s = max(self._floor_s, self._used_s[tenant])
            future, work = self._waiting[tenant].popleft()
            if not self._waiting[tenant]:
                del self._waiting[tenant]
            return tenant, future, work
