"""End the server: after a drain on a signal or for another process, at once on a failure."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from server.engine_client.client import EngineClient
from server.http.connections import Connections
from server.http.uvicorn_server import RequestTracker
from server.lifecycle.startup_report import StartupReport

T = TypeVar("T")


class Shutdown:
    """Reason for the end of the server, and its exit code.

    The first signal lets running requests finish in time; a second one ends them at once. What is sent to the whole
    process group comes again as an order of the process before this one. So signals are counted, and orders are not.
    """

    def __init__(
        self,
        client: EngineClient,
        in_flight: RequestTracker,
        connections: Connections,
        report: StartupReport,
        *,
        drain_timeout_s: float,
    ) -> None:
        self._client = client
        self._in_flight = in_flight
        self._connections = connections
        self._report = report
        self._drain_timeout_s = drain_timeout_s
        self._requested = asyncio.Event()  # by a signal or a failure
        self._second_signal = asyncio.Event()  # to this process, or to the one before it
        self._is_late = asyncio.Event()  # a signal came after the hand-over, and its time for the drain is over
        self._hand_over_timeout_s: float | None = None
        self._own_signal: signal.Signals | None = None  # the first that was sent to this process
        self._signal: signal.Signals | None = None  # the last, also of an order
        self._failure: tuple[str, int] | None = None  # message and exit code
        self._exit_code = 0  # without a failure

    def on_signal(self, signum: signal.Signals) -> None:
        """Start the drain; called again, end it."""
        is_first = self._own_signal is None or signum == self._own_signal == signal.SIGHUP  # the kernel's and a shell's
        self._own_signal = self._own_signal or signum
        self.request(signum, is_urgent=not is_first)

    def request(self, signum: signal.Signals, *, is_urgent: bool = False) -> None:
        """Start the drain, or end it, for what another process has seen. May be repeated."""
        if is_urgent:
            self._second_signal.set()
        elif self._signal is not None:
            return
        elif self._hand_over_timeout_s is None and (num := self._in_flight.num_requests):
            requests = "1 request still runs" if num == 1 else f"{num:,} requests still run"
            again = "Ctrl-C again" if signum == signal.SIGINT else "a second signal"
            self._report.line(f"stopping: {requests} (for up to {self._drain_timeout_s:g} s); {again} ends now")
        elif self._hand_over_timeout_s is not None:
            asyncio.get_running_loop().call_later(self._drain_timeout_s, self._is_late.set)
        self._signal = signum
        self._client.drain()
        self._requested.set()

    @property
    def is_urgent(self) -> bool:
        """True once running requests are not waited for."""
        return self._second_signal.is_set()

    @property
    def is_requested(self) -> bool:
        """True once the server is going to end."""
        return self._requested.is_set()

    def hand_over(self, timeout_s: float) -> None:
        """Start the drain of the open connections for another process, which accepts the new ones.

        Requests that still arrive are answered.
        """
        self._hand_over_timeout_s = timeout_s
        self._requested.set()

    def hasten(self) -> bool:
        """End the drain of a hand-over as soon as one on a signal, with exit code 1.

        Returns False, and does nothing, if a signal came already.
        """
        if self._signal is not None:
            return False
        self._exit_code = 1
        asyncio.get_running_loop().call_later(self._drain_timeout_s, self._is_late.set)
        return True

    def fail(self, message: str, exit_code: int) -> None:
        """Report a failure and request the end. Ignored once the end was requested."""
        self._report.end_progress(is_complete=False)
        if self._failure is None and not self._requested.is_set():
            self._failure = (message, exit_code)
            self._report.line(f"smoe: {message}")
            self._requested.set()

    async def unless_requested(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return the result of `work`; None if the end was requested first, which cancels it."""
        task, requested = asyncio.create_task(work), asyncio.create_task(self._requested.wait())
        await asyncio.wait({task, requested}, return_when=asyncio.FIRST_COMPLETED)
        requested.cancel()
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait({task})
        return None

    async def run(self) -> int:
        """Wait for a signal or a failure, drain, stop the engine; return the exit code.

        Requests that are still running then end with an error event.
        """
        await self._requested.wait()
        if self._failure is None:
            await self._drain()
        await self._client.stop()
        if self._failure is not None:
            return self._failure[1]
        return 128 + self._signal if self._signal is not None and self._second_signal.is_set() else self._exit_code

    async def _drain(self) -> None:
        """Wait until no request is running, for a second signal, or for the timeout."""
        waits = {
            asyncio.create_task(self._wait_finished()),
            asyncio.create_task(self._second_signal.wait()),
            asyncio.create_task(self._is_late.wait()),
        }
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()

    async def _wait_finished(self) -> None:
        """Wait until no request is running; after a hand-over until no connection is open, which could bring one."""
        if self._hand_over_timeout_s is None:
            await self._in_flight.wait_idle(self._drain_timeout_s)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._connections.wait_none(), self._hand_over_timeout_s)
