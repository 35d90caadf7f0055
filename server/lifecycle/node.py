"""`smoe serve` on a host that is not the first of several: it runs the ranks of this host, and answers health checks.

To the supervisor such ranks are an engine without requests: started, watched, and started again when their group ends.
"""

import asyncio
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import uvloop

from engine.assertions import NO_ASSERTIONS, are_assertions_off
from server.engine_client.inflight import CrashReport
from server.engine_client.status import EngineStatus
from server.engine_client.supervisor import EngineEvents, EngineSupervisor, SupervisorConfig
from server.http.listener import ListenError, listen_as
from server.lifecycle.errors import StartError, process_error
from server.lifecycle.health_page import HealthPage
from server.lifecycle.restart.early_hangup import EarlyHangup
from server.lifecycle.startup_report import SIGHUP_IGNORED, StartupReport
from server.model_files.location import ModelNotFoundError, described, locate_model
from server.observability.log_stream import logging_to
from server.settings.engine_config import engine_config
from server.settings.settings import Settings
from server.settings.sources import model_stores

RANK_COMMAND = (sys.executable, "-m", "engine.host_rank")


def serve_node(settings: Settings, launcher_attempt: int | None, hangup: EarlyHangup | None = None) -> int:
    """Run the ranks of this host until a signal or their end; return the exit code. Raises StartError.

    `launcher_attempt`: None unless torchrun has started this process, and starts it again. `hangup`: the handler of
    SIGHUP until now.
    """
    if are_assertions_off():
        raise StartError(NO_ASSERTIONS)
    try:
        model_dir = locate_model(settings.model, model_stores())
        # Under torchrun processes share a host, and it watches them itself.
        listener = listen_as(settings) if launcher_attempt is None else None
    except (ModelNotFoundError, ListenError) as error:
        raise StartError(str(error)) from None
    with logging_to(level=settings.log_level, style=settings.log_format) as output:
        report = StartupReport(output, style=settings.log_format)
        node = Node(settings, model_dir, launcher_attempt, report)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(node.run(listener, hangup))


@dataclass(frozen=True)
class GroupEnd(CrashReport):
    """The end of ranks, which have no requests."""

    def summary(self) -> str:
        return "the ranks of this host start again"


class Node:
    """The ranks of one host."""

    def __init__(
        self, settings: Settings, model_dir: Path, launcher_attempt: int | None, report: StartupReport
    ) -> None:
        self._settings = settings
        self._model_dir = model_dir
        self._attempt = launcher_attempt
        self._report = report
        self._is_over = asyncio.Event()
        self._exit_code = 0
        events = EngineEvents(
            on_message=lambda message: None,
            on_ready=self._on_ready,
            on_unnamed_adapter=lambda digest: None,
            on_crash=lambda: GroupEnd(lost=[], culprit=None, num_lost=0, num_kept=0),
            on_end=lambda reason: None,
            on_tick=lambda now_s: None,
            on_status=self._on_status,
            on_restart=lambda: None,
        )
        config = SupervisorConfig(RANK_COMMAND, restarts=launcher_attempt is None)
        self._supervisor = EngineSupervisor(config, events)

    async def run(self, listener: socket.socket | None, hangup: EarlyHangup | None = None) -> int:
        """Run until a signal or the end of the ranks; return the exit code. `hangup`: see serve_node()."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._is_over.set)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            loop.add_signal_handler(signal.SIGHUP, self._on_sighup)
            if hangup is not None:
                hangup.pass_on(self._on_sighup)
        settings = self._settings
        self._report.line(
            f"smoe loads {described(self._model_dir)}; host {settings.node_rank} of {settings.nnodes} joins rank 0 at "
            f"{settings.master_addr}"
        )
        page = None if listener is None else HealthPage(lambda: self._supervisor.status)
        if page is not None and listener is not None:
            await page.start(listener)
        try:
            await self._supervisor.start(engine_config(settings, self._model_dir, self._attempt), None)
            await self._is_over.wait()
        except OSError as error:
            self._end(process_error(error), 1)
        await self._supervisor.stop()
        if page is not None:
            await page.stop()
        return self._exit_code

    def _on_sighup(self) -> None:
        """Go on: a server on one host would be replaced, and without a handler the process would end."""
        self._report.line(SIGHUP_IGNORED)

    def _on_ready(self) -> None:
        self._report.line(f"ready: the ranks of host {self._settings.node_rank} compute for rank 0")

    def _on_status(self, status: EngineStatus) -> None:
        if status.phase == "dead" and not self._is_over.is_set():
            self._end(status.message or "the ranks are gone", status.exit_code)

    def _end(self, message: str, exit_code: int) -> None:
        self._report.line(f"smoe: {message}")
        self._exit_code = exit_code
        self._is_over.set()
