"""The engine as the HTTP side sees it: takes requests, gives their outputs, and starts another process where one dies.

Knows request ids and token ids, not text and not HTTP. Everything runs on the event loop; nothing here blocks it. What
it puts together: `engine_link` is one process and its socket, `request_book` what is kept to be sent again, `backoff`
when to start the next, `watchdog` whether the one there is goes on.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from engine.config import EngineConfig
from engine.messages import (
    Abort,
    Add,
    ExpertsQuery,
    ExpertsReply,
    FromEngine,
    PrefillStarted,
    Progress,
    Ready,
    Start,
    StepDone,
)
from engine.types import ExpertReport, Request, RequestOutput, StepStats, Vocabulary
from server.engine_client.inflight import InFlightRequests
from server.engine_client.output_collector import EngineDied, OutputCollector
from server.engine_client.process import ENGINE_COMMAND, EngineProcessHandle, ProcessExit
from server.engine_client.restart_policy import MAX_FAILED_STARTS, SERVED_S, RestartPolicy
from server.engine_client.watchdog import Watchdog, WatchdogTimeouts

logger = logging.getLogger("smoe.engine")

Phase = Literal["loading", "ready", "stuck", "restarting", "draining", "dead"]
PATIENCE = WatchdogTimeouts()
STOP_GRACE_S = 0.5  # for a process that was told to exit
STOPPED = "the server is shutting down"
GONE = "the engine stopped; the request can be sent again"


@dataclass(frozen=True)
class EngineStatus:
    """What health checks report."""

    phase: Phase
    stage: str = ""  # while it loads: "weights", "kv cache", "warm-up"
    loaded_bytes: int = 0
    total_bytes: int = 0
    message: str | None = None  # why it is dead, one line for the person at the terminal: it may name paths
    exit_code: int = 1  # what the server should exit with when it is dead


class EngineClient:
    """The engine, through the lives of its processes. With `restarts`, one that served and died is replaced; what the
    phase "dead" says is final."""

    def __init__(
        self,
        *,
        on_step: Callable[[StepStats], None] = lambda stats: None,
        on_status: Callable[[EngineStatus], None] = lambda status: None,
        on_restart: Callable[[], None] = lambda: None,
        command: Sequence[str] = ENGINE_COMMAND,
        restarts: bool = False,
        patience: WatchdogTimeouts = PATIENCE,
    ) -> None:
        """`on_step` sees each step's numbers, `on_status` each new status, `on_restart` each process but the first;
        `command`: see EngineProcessHandle."""
        self.ready: Ready | None = None  # of the newest process that was
        self.stats = StepStats()
        self._status = EngineStatus("loading")
        self._on_step = on_step
        self._on_status = on_status
        self._on_restart = on_restart
        self._command = command
        self._patience = patience
        self._backoff = RestartPolicy() if restarts else None
        self._book = InFlightRequests()
        self._questions: dict[tuple[float | None, bool], asyncio.Future[ExpertReport]] = {}  # about experts
        self._asked: dict[int, tuple[float | None, bool]] = {}  # by query id
        self._last_query_id = 0
        self._last_request_id = 0
        self._start: Start | None = None
        self._link = EngineProcessHandle(command, self._receive, self._died)
        self._serves = False  # this process has loaded
        self._ready_s: float | None = None  # when it had
        self._gave_output = False  # this process, to anybody
        self._is_draining = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def status(self) -> EngineStatus:
        """The newest status."""
        return self._status

    @property
    def pid(self) -> int | None:
        """Of the newest process."""
        return self._link.pid

    @property
    def num_open(self) -> int:
        """Requests submitted and neither finished nor aborted."""
        return len(self._book)

    @property
    def num_waiting(self) -> int:
        """Requests submitted that no step has been seen to run: kept here, in the engine's queue, or preempted."""
        return max(0, len(self._book) - self.stats.num_running)

    def new_request_id(self) -> int:
        """An id that no other request of this client has."""
        self._last_request_id += 1
        return self._last_request_id

    async def start(self, config: EngineConfig, vocabulary: Vocabulary | None = None) -> None:
        """Start the engine process and tell it what to load. Returns at once; `on_status` tells how it goes.

        `vocabulary`: the tokens of which requests' grammars speak.
        """
        self._start = Start(config, vocabulary)
        await self._link.start(self._start)
        self._spawn(self._look_after())

    def submit(self, requests: Sequence[Request]) -> OutputCollector:
        """Queue requests, in order, whose outputs come to one mailbox. Of a dead engine it raises EngineDied."""
        mailbox = OutputCollector()
        if self._status.phase == "dead":
            mailbox.fail(GONE)
            return mailbox
        self._book.add(requests, mailbox)
        self._send_what_is_due()
        return mailbox

    def abort(self, request_ids: Iterable[int]) -> None:
        """Forget these requests. Unknown, finished and aborted ids are ignored."""
        self._forget(self._book.abort(request_ids))

    async def experts(self, window_s: float | None, *, reset: bool = False) -> ExpertReport:
        """What the experts took, of the last `window_s` or since the process started; with `reset` it is forgotten
        first. Those who ask the same at the same time get one answer. Raises EngineDied."""
        if not self._serves:
            raise EngineDied(GONE)
        question = window_s, reset
        if question not in self._questions:
            self._questions[question] = asyncio.get_running_loop().create_future()
            self._last_query_id += 1
            self._asked[self._last_query_id] = question
            self._link.send(ExpertsQuery(self._last_query_id, window_s, reset))
        return await asyncio.shield(self._questions[question])

    def drain(self) -> None:
        """From now on the status says "draining" where it would say that the engine works; what runs goes on."""
        self._is_draining = True
        if self._status.phase != "dead":
            self._set_status(self._status)

    async def stop(self) -> None:
        """End the engine process; requests still open get EngineDied. Idempotent."""
        self._end(STOPPED, exit_code=0, told_clients=STOPPED)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._link.end(STOP_GRACE_S)

    def _send_what_is_due(self) -> None:
        if self._serves and (requests := self._book.pop_sendable()):
            self._link.send(Add(requests))

    def _forget(self, in_engine: list[int]) -> None:
        if in_engine:
            self._link.send(Abort(in_engine))
        self._send_what_is_due()  # one that was waited for may be gone

    def _receive(self, message: FromEngine) -> None:
        match message:
            case StepDone(step):
                self._take_step(step.outputs, step.stats)
            case PrefillStarted(request_ids):
                self._book.started(request_ids)
            case Progress():
                phase: Phase = "loading" if self.ready is None else "restarting"
                self._set_status(EngineStatus(phase, message.phase, message.loaded_bytes, message.total_bytes))
            case Ready():
                self._take_ready(message)
            case ExpertsReply():
                answer = self._questions.pop(self._asked.pop(message.query_id))
                answer.set_result(message.report)

    def _take_ready(self, ready: Ready) -> None:
        if self.ready is not None and self.ready.fingerprint != ready.fingerprint:
            # Requests were prepared, and streams begun, in the name of other numerics: promise nothing for these.
            self._end("the engine that was started again computes other numbers: start the server again")
            return
        if self.ready is not None:
            logger.warning("the engine is ready again")
        self.ready, self._serves, self._ready_s = ready, True, time.monotonic()
        self._set_status(EngineStatus("ready", "", ready.weight_bytes, ready.weight_bytes))
        self._send_what_is_due()

    def _take_step(self, outputs: list[RequestOutput], stats: StepStats) -> None:
        self.stats = stats
        self._on_step(stats)
        for output in outputs:
            self._gave_output = True
            if (mailbox := self._book.take(output)) is not None:
                mailbox.put(output)
        self._send_what_is_due()

    def _set_status(self, status: EngineStatus) -> None:
        """While it drains nobody is told that it loads or is ready."""
        if self._is_draining and status.phase in ("loading", "ready"):
            status = replace(status, phase="draining")
        self._status = status
        self._on_status(status)

    def _died(self, death: ProcessExit) -> None:
        """The process is gone, or of no use: those with output end, the others are kept for the next one."""
        if self._status.phase == "dead":
            return
        casualties = self._book.engine_died()
        for mailbox in casualties.lost:
            mailbox.fail(GONE)
        if casualties.culprit is not None:
            mailbox, output = casualties.culprit
            mailbox.put(output)
        delay_s = self._delay_s(is_explained=casualties.culprit is not None)
        if delay_s is None:
            gave_up = self._backoff is not None and self.ready is not None
            why = f"{MAX_FAILED_STARTS} engines in a row came to nothing; of the last: " if gave_up else ""
            self._end(f"{why}{death.message}", exit_code=death.exit_code)
            return
        logger.warning(
            "%s: %d requests end with an error, %d are kept%s; it is started again in %.1f s",
            death.message,
            casualties.num_lost,
            casualties.num_kept,
            "" if casualties.culprit is None else ", and the one it died of twice is answered",
            delay_s,
        )
        self._forget_process()
        self._set_status(EngineStatus("restarting"))
        self._spawn(self._start_again(self._link, delay_s))

    def _delay_s(self, *, is_explained: bool) -> float | None:
        """None: there will be no other process."""
        if self.ready is None or self._backoff is None:
            return None
        served = self._ready_s is not None and time.monotonic() - self._ready_s >= SERVED_S
        return self._backoff.died(was_useful=self._gave_output or served, is_explained=is_explained)

    def _forget_process(self) -> None:
        """What was known of the process that is gone."""
        self._serves = self._gave_output = False
        self._ready_s = None
        self.stats = StepStats(num_blocks_total=self.stats.num_blocks_total)
        for answer in self._questions.values():
            answer.set_exception(EngineDied(GONE))
            answer.exception()  # seen, though nobody may be waiting any more
        self._questions.clear()
        self._asked.clear()

    async def _start_again(self, link: EngineProcessHandle, delay_s: float) -> None:
        """The one before is gone for certain first: its memory is needed."""
        logger.info("the engine process %s", await link.end())
        await asyncio.sleep(delay_s)
        self._link = EngineProcessHandle(self._command, self._receive, self._died)
        self._on_restart()
        try:
            await self._link.start(self._start_as_before())
        except OSError as error:
            self._link.die(ProcessExit(f"the engine process cannot be started: {error.strerror}"))

    def _start_as_before(self) -> Start:
        """With the limits that the first process derived: requests were accepted by them."""
        assert self._start is not None and self.ready is not None
        limits = {"num_kv_blocks": self.ready.num_blocks, "max_model_len": self.ready.max_model_len}
        return msgspec.structs.replace(self._start, config=msgspec.structs.replace(self._start.config, **limits))

    def _end(self, message: str, *, exit_code: int = 1, told_clients: str = GONE) -> None:
        """The first reason stands."""
        if self._status.phase == "dead":
            return
        self._forget_process()
        self._set_status(replace(self._status, phase="dead", message=message, exit_code=exit_code))
        for mailbox in self._book.close():
            mailbox.fail(told_clients)
        self._link.die(ProcessExit(message))

    async def _look_after(self) -> None:
        """The process that there is, and the requests' deadlines, for which there need not be one."""
        link = watchdog = None
        while self._status.phase != "dead":
            now_s = time.monotonic()
            if watchdog is None or link is not self._link:
                link, watchdog = self._link, Watchdog(now_s)
            self._judge(watchdog.observe(link.num_beats, now_s))
            outputs, in_engine = self._book.expire(now_s)
            for mailbox, output in outputs:
                mailbox.put(output)
            self._forget(in_engine)
            await asyncio.sleep(self._patience.look_s)

    def _judge(self, stalled_s: float) -> None:
        """What it means that the process has shown no sign of life for so long."""
        patience = self._patience
        if stalled_s >= (patience.kill_after_s if self._serves else patience.kill_loading_after_s):
            self._link.die(ProcessExit(f"the engine has made no progress for {stalled_s:.0f} s"))
        elif self._serves and stalled_s >= patience.stuck_after_s and self._status.phase != "stuck":
            logger.warning("the engine makes no progress; it is killed if that lasts for %.0f s", patience.kill_after_s)
            self._set_status(replace(self._status, phase="stuck"))
        elif stalled_s == 0.0 and self._status.phase == "stuck":
            logger.warning("the engine makes progress again")
            self._set_status(replace(self._status, phase="ready"))

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._settle)

    def _settle(self, task: "asyncio.Task[None]") -> None:
        """What looks after the engine must not fail unseen."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("looking after the engine failed", exc_info=error)
            self._end("looking after the engine failed")
