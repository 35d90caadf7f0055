"""The API process' end of the socket to the engine process: starts it, sends requests, sorts outputs into mailboxes.

Knows request ids and token ids, not text and not HTTP. Everything runs on the event loop; nothing here blocks it.
"""

import asyncio
import logging
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

import engine
from engine.config import EngineConfig
from engine.messages import (
    Abort,
    Add,
    AskExperts,
    Experts,
    Failed,
    FrameReader,
    FromEngine,
    Progress,
    Ready,
    Start,
    Step,
    ToEngine,
    encode_frame,
)
from engine.types import ExpertReport, Request, RequestOutput, StepStats, Vocabulary
from server.mailbox import EngineDied, Mailbox

logger = logging.getLogger("smoe.engine")

Phase = Literal["loading", "ready", "draining", "dead"]
ENGINE_COMMAND = (sys.executable, "-m", "engine.process")
EXIT_GRACE_S = 2.0  # for what a process that has exited left in the socket
STOP_GRACE_S = 0.5  # for a process that was told to exit
STOPPED = "the server is shutting down"
GONE = "the engine stopped; the request can be sent again"


@dataclass(frozen=True)
class EngineStatus:
    """What health checks report."""

    phase: Phase
    stage: str = ""  # while loading: "weights", "kv cache", "warm-up"
    loaded_bytes: int = 0
    total_bytes: int = 0
    message: str | None = None  # why it is dead, one line for the person at the terminal: it may name paths
    exit_code: int = 1  # what the server should exit with when it is dead


class EngineClient:
    """The running engine, as the HTTP side sees it. One engine for the client's life: a dead one stays dead."""

    def __init__(
        self,
        *,
        on_step: Callable[[StepStats], None] = lambda stats: None,
        on_status: Callable[[EngineStatus], None] = lambda status: None,
        command: Sequence[str] = ENGINE_COMMAND,
    ) -> None:
        """`on_step` sees each step's numbers, `on_status` each new status; `command` gets the socket's number."""
        self.ready: Ready | None = None
        self.stats = StepStats()
        self._status = EngineStatus("loading")
        self._on_step = on_step
        self._on_status = on_status
        self._command = command
        self._mailboxes: dict[int, Mailbox] = {}
        self._questions: dict[tuple[float | None, bool], asyncio.Future[ExpertReport]] = {}  # about experts
        self._asked: dict[int, tuple[float | None, bool]] = {}  # by query id
        self._last_query_id = 0
        self._last_request_id = 0
        self._process: Process | None = None
        self._transport: asyncio.Transport | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def status(self) -> EngineStatus:
        """The newest status."""
        return self._status

    @property
    def num_open(self) -> int:
        """Requests submitted and neither finished nor aborted."""
        return len(self._mailboxes)

    @property
    def num_waiting(self) -> int:
        """Requests submitted that no step has been seen to run: on their way, in the engine's queue, or preempted."""
        return max(0, len(self._mailboxes) - self.stats.num_running)

    def new_request_id(self) -> int:
        """An id that no other request of this engine has."""
        self._last_request_id += 1
        return self._last_request_id

    async def start(self, config: EngineConfig, vocabulary: Vocabulary | None = None) -> None:
        """Start the engine process and tell it what to load. Returns at once; `on_status` tells how it goes.

        `vocabulary`: the tokens of which requests' grammars speak. A session of its own keeps the terminal's Ctrl-C
        away from the process: it ends when its socket does, after the drain.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=DEVNULL,
                cwd=package_root(),
                start_new_session=True,
            )
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_connection(lambda: _EngineProtocol(self._receive, self._lost), sock=ours)
        self._watcher = loop.create_task(self._watch(self._process))
        self._send(Start(config, vocabulary))

    def submit(self, requests: Sequence[Request]) -> Mailbox:
        """Queue requests, in order, whose outputs come to one mailbox. Of a dead engine it raises EngineDied."""
        mailbox = Mailbox()
        if self._status.phase == "dead":
            mailbox.fail(GONE)
            return mailbox
        self._mailboxes.update((request.request_id, mailbox) for request in requests)
        self._send(Add(list(requests)))
        return mailbox

    def abort(self, request_ids: Iterable[int]) -> None:
        """Forget these requests. Unknown, finished and aborted ids are ignored."""
        known = [request_id for request_id in request_ids if self._mailboxes.pop(request_id, None) is not None]
        if known:
            self._send(Abort(known))

    async def experts(self, window_s: float | None, *, reset: bool = False) -> ExpertReport:
        """What the experts took, of the last `window_s` or since the start; with `reset` it is forgotten first. Those
        who ask the same at the same time get one answer. Raises EngineDied."""
        if self._status.phase == "dead":
            raise EngineDied(GONE)
        question = window_s, reset
        if question not in self._questions:
            self._questions[question] = asyncio.get_running_loop().create_future()
            self._last_query_id += 1
            self._asked[self._last_query_id] = question
            self._send(AskExperts(self._last_query_id, window_s, reset))
        return await asyncio.shield(self._questions[question])

    def drain(self) -> None:
        """From now on the status says "draining"; what runs goes on."""
        if self._status.phase != "dead":
            self._set_status(replace(self._status, phase="draining"))

    async def stop(self) -> None:
        """End the engine process; requests still open get EngineDied. Idempotent."""
        self._die(STOPPED, exit_code=0, told_clients=STOPPED)
        if self._process is not None and self._watcher is not None:
            try:
                await asyncio.wait_for(asyncio.shield(self._watcher), STOP_GRACE_S)
            except TimeoutError:
                self._process.send_signal(signal.SIGKILL)
                await self._watcher

    def _send(self, message: ToEngine) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(message))

    def _receive(self, message: FromEngine) -> None:
        match message:
            case Step(step):
                self._take_step(step.outputs, step.stats)
            case Progress():
                self._set_status(EngineStatus("loading", message.phase, message.loaded_bytes, message.total_bytes))
            case Ready():
                self.ready = message
                total = message.weight_bytes
                self._set_status(EngineStatus("ready", "", total, total))
            case Experts():
                answer = self._questions.pop(self._asked.pop(message.query_id))
                answer.set_result(message.report)
            case Failed():
                self._die(message.message, exit_code=message.exit_code)

    def _take_step(self, outputs: list[RequestOutput], stats: StepStats) -> None:
        self.stats = stats
        self._on_step(stats)
        for output in outputs:
            mailbox = self._mailboxes.get(output.request_id)
            if mailbox is None:
                continue  # aborted here while the engine was computing it
            if output.finish_reason is not None:
                del self._mailboxes[output.request_id]
            mailbox.put(output)

    def _set_status(self, status: EngineStatus) -> None:
        if self._status.phase == "draining" and status.phase != "dead":
            status = replace(status, phase="draining")
        self._status = status
        self._on_status(status)

    def _lost(self, reason: str | None) -> None:
        self._die(reason or "the engine process is gone")

    def _die(self, message: str, *, exit_code: int = 1, told_clients: str = GONE) -> None:
        """The first reason stands. Closing our end is what makes the process exit."""
        if self._status.phase == "dead":
            return
        self.stats = StepStats(num_blocks_total=self.stats.num_blocks_total)
        self._set_status(replace(self._status, phase="dead", message=message, exit_code=exit_code))
        mailboxes, self._mailboxes = self._mailboxes, {}
        for mailbox in mailboxes.values():
            mailbox.fail(told_clients)
        for answer in self._questions.values():
            answer.set_exception(EngineDied(told_clients))
            answer.exception()  # seen, though nobody may be waiting any more
        if self._transport is not None:
            self._transport.close()

    async def _watch(self, process: Process) -> None:
        """A process that exits without closing its socket (a child of its own holds it open) is dead all the same."""
        code = await process.wait()
        logger.debug("engine process %d exited with %d", process.pid, code)
        if self._status.phase != "dead":
            loop = asyncio.get_running_loop()
            loop.call_later(EXIT_GRACE_S, self._lost, f"the engine process exited with {code}")


class _EngineProtocol(asyncio.Protocol):
    """Cuts the bytes from the engine into messages."""

    def __init__(self, receive: Callable[[FromEngine], None], lost: Callable[[str | None], None]) -> None:
        self._receive = receive
        self._lost = lost
        self._reader: FrameReader[FromEngine] = FrameReader(FromEngine)
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, chunk: bytes) -> None:
        try:
            messages = self._reader.feed(chunk)
        except msgspec.DecodeError:
            logger.exception("the engine sent a message that is none")
            self._lost("the engine sent a message that the server cannot read")
            return
        for message in messages:
            self._receive(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(None)


def package_root() -> Path:
    """Where `-m engine.process` finds this installation's engine, whatever folder the server was started in."""
    (package_folder,) = engine.__path__
    return Path(package_folder).parent
