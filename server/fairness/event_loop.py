"""Keep the event loop responsive: move long work to a thread, and measure how late the loop runs its timers."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

INLINE_CHARS = 4096  # work on a longer text runs in a thread
LAG_PROBE_INTERVAL_S = 0.25
LAG_WINDOW_S = 10.0

T = TypeVar("T")


async def off_loop(work: Callable[[], T], *, heavy: bool) -> T:
    """Return the result of `work`, which runs in a thread if it is heavy, so that the event loop stays responsive.

    Light work runs in the caller, because a thread would cost more than the work itself.
    """
    return await asyncio.to_thread(work) if heavy else work()


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. A cancelled caller waits for its end, because a thread cannot be stopped and may use
    what the caller is about to close."""
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.exception()  # marks it as retrieved
        raise cancelled
    return task.result()


class BackgroundTasks:
    """Tasks without a caller that awaits them."""

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        """`on_error` receives the exception of each task that fails."""
        self._on_error = on_error
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task on the running event loop."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    async def cancel(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(error)


class LagProbe:
    """Measures how late the event loop runs a timer and reports the longest delay of the last LAG_WINDOW_S seconds."""

    def __init__(self, report: Callable[[float], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`report` receives that delay in seconds after each measurement."""
        self._report = report
        self._clock = clock
        self._lags: deque[float] = deque(maxlen=round(LAG_WINDOW_S / LAG_PROBE_INTERVAL_S))

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due_s = self._clock() + LAG_PROBE_INTERVAL_S
            await asyncio.sleep(LAG_PROBE_INTERVAL_S)
            self.measure(due_s)

    def measure(self, due_s: float) -> None:
        """Record the delay of a timer that was due at `due_s` and runs now."""
        self._lags.append(max(0.0, self._clock() - due_s))
        self._report(max(self._lags))
