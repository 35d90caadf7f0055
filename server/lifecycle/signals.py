"""What the server does at each signal: those of people and programs, and the orders of the process before it."""

import asyncio
import signal

from server.lifecycle.restart.early_hangup import EarlyHangup
from server.lifecycle.restart.keeper import ORDERS, STOPS
from server.lifecycle.restart.reload import Reload
from server.lifecycle.shutdown import Shutdown
from server.lifecycle.startup_report import SIGHUP_IGNORED, StartupReport


class SignalHandlers:
    """The handlers of the event loop."""

    def __init__(self, shutdown: Shutdown, reload: Reload, report: StartupReport, *, num_hosts: int) -> None:
        """`num_hosts`: with several, nothing is restarted."""
        self._shutdown = shutdown
        self._reload = reload
        self._report = report
        self._num_hosts = num_hosts

    def install(self, hangup: EarlyHangup | None) -> None:
        """Install the handlers. `hangup`: the one of SIGHUP until now."""
        loop = asyncio.get_running_loop()
        for signum in STOPS:
            loop.add_signal_handler(signum, self._on_stop, signum)
        for (stop, is_urgent), order in ORDERS.items():
            loop.add_signal_handler(order, self._on_order, signal.Signals(stop), is_urgent)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            loop.add_signal_handler(signal.SIGHUP, self._on_sighup)
            if hangup is not None:
                hangup.pass_on(self._on_sighup)

    def _on_stop(self, signum: signal.Signals) -> None:
        self._shutdown.on_signal(signum)
        self._reload.pass_on(signum, is_urgent=self._shutdown.is_urgent)

    def _on_order(self, signum: signal.Signals, is_urgent: bool) -> None:
        self._shutdown.request(signum, is_urgent=is_urgent)
        self._reload.pass_on(signum, is_urgent=self._shutdown.is_urgent)

    def _on_sighup(self) -> None:
        if self._num_hosts > 1:
            self._report.line(SIGHUP_IGNORED)
        elif self._reload.is_handed_over or not self._shutdown.is_requested:
            self._reload.on_signal()
