"""The engine as the HTTP side sees it: submit requests, abort them, collect their outputs.

Knows request ids and token ids, not text and not HTTP. Everything runs on the event loop; nothing here blocks it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from engine.config import EngineConfig
from engine.messages import (
    Abort,
    AdapterLoaded,
    Add,
    ExpertsReply,
    FromEngine,
    OutputPart,
    PrefillStarted,
    Ready,
    StepDone,
    StepPart,
)
from engine.step_frames import with_parts
from engine.types import ExpertReport, Request, RequestOutput, StepStats, Vocabulary
from server.engine_client.adapter_queries import AdapterQueries
from server.engine_client.expert_queries import ExpertQueries
from server.engine_client.inflight import CrashReport, InFlightRequests
from server.engine_client.launch import LaunchedEngine
from server.engine_client.output_collector import CRASHED, EngineDied, OutputCollector
from server.engine_client.status import EngineStatus
from server.engine_client.supervisor import EngineEvents, EngineSupervisor, SupervisorConfig

logger = logging.getLogger("smoe.engine")

MAX_ADDED, MAX_ADDED_IDS = 64, 1 << 15  # requests of a frame, and token ids at which it ends: about 1 ms to encode
NOT_ENCODABLE = (OverflowError, TypeError, ValueError)  # an integer beyond 64 bits, a text that is not valid in UTF-8
NOT_SENT = "this request cannot be sent to the engine"


class EngineClient:
    """Client of the engine process; restarts it when it crashes."""

    def __init__(
        self,
        config: SupervisorConfig | None = None,
        *,
        on_step: Callable[[StepStats], None] = lambda stats: None,
        on_status: Callable[[EngineStatus], None] = lambda status: None,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_step` receives the statistics of each step; `on_status`, `on_restart`: see EngineEvents."""
        self.stats = StepStats()  # of the last step
        self._on_step = on_step
        self._requests = InFlightRequests()
        self._last_request_id = 0
        self._parts: dict[int, list[RequestOutput]] = {}  # by request; its output follows in the same step
        self._is_sending = False  # _send_frame is scheduled
        events = EngineEvents(
            on_message=self._receive,
            on_ready=self._on_ready,
            on_unnamed_adapter=lambda digest: self._adapter_queries.unload(digest),
            on_crash=self._on_crash,
            on_end=self._on_end,
            on_tick=self._expire,
            on_status=on_status,
            on_restart=on_restart,
        )
        self._supervisor = EngineSupervisor(config or SupervisorConfig(), events)
        self._expert_queries = ExpertQueries(self._supervisor.send)
        self._adapter_queries = AdapterQueries(self._supervisor.send, self._requests.have_adapter)

    @property
    def ready(self) -> Ready | None:
        """Properties of the last engine process that became ready; None before the first."""
        return self._supervisor.ready

    @property
    def status(self) -> EngineStatus:
        """Current phase and loading progress."""
        return self._supervisor.status

    @property
    def pid(self) -> int | None:
        """Process id of the running engine."""
        return self._supervisor.pid

    @property
    def num_open(self) -> int:
        """Number of requests submitted and neither finished nor aborted."""
        return len(self._requests)

    @property
    def num_waiting(self) -> int:
        """Number of open requests that the last step did not run: pending here, queued in the engine, or preempted."""
        return max(0, len(self._requests) - self.stats.num_running)

    def new_request_id(self) -> int:
        """Return an id that no other request of this client has."""
        self._last_request_id += 1
        return self._last_request_id

    async def adopt(self, launched: LaunchedEngine) -> None:
        """Take over a launched process, in which start() then loads the engine."""
        await self._supervisor.adopt(launched)

    async def start(self, config: EngineConfig, vocabulary: Vocabulary | None = None) -> None:
        """Start the engine process. Returns before it has loaded; `on_status` reports the progress. Raises OSError.

        `vocabulary`: the tokens that grammars of requests refer to; None if no request has a grammar.
        """
        await self._supervisor.start(config, vocabulary)

    def submit(self, requests: Sequence[Request]) -> OutputCollector:
        """Queue requests in order; return the collector of their outputs, which raises EngineDied without an engine."""
        collector = OutputCollector()
        if self.status.phase == "dead":
            collector.fail(CRASHED)
            return collector
        self._requests.add(requests, collector)
        self._send_pending()
        return collector

    def abort(self, request_ids: Iterable[int]) -> None:
        """Forget these requests. Unknown, finished and aborted ids are ignored."""
        self._abort_in_engine(self._requests.abort(request_ids))

    async def experts(self, window_s: float | None, *, reset: bool = False) -> ExpertReport:
        """Return expert usage of the last `window_s` seconds, or since the last reset if None.

        With `reset` the counts are cleared first. Simultaneous equal calls share one reply, and calls with the same
        window within a second do too. Raises EngineDied.
        """
        if not self._supervisor.is_serving:
            raise EngineDied(CRASHED)
        return await self._expert_queries.ask(window_s, reset=reset)

    @property
    def loading_adapters(self) -> frozenset[str]:
        """Names of the adapters that are being loaded."""
        return self._adapter_queries.loading

    async def load_adapter(self, name: str, directory: str) -> None:
        """Load a LoRA adapter. It is in `ready.adapters` afterwards, also of a restarted engine.

        One that has the name already is replaced: requests that have it finish with it, and its memory is freed then.
        Raises AdapterError for one that cannot be served, and EngineDied.
        """
        if not self._supervisor.is_serving:
            raise EngineDied(CRASHED)
        await asyncio.shield(self._adapter_queries.load(name, directory))

    def unload_adapter(self, name: str) -> None:
        """Take an adapter's name away. Its memory is freed when no request has it any more, and nobody holds it."""
        digest = self._supervisor.remove_adapter(name)
        self._adapter_queries.unload(digest)
        self._free_adapters()

    def hold_adapter(self, digest: str) -> None:
        """Keep an adapter, even if it is unloaded, until release_adapter() is called as often."""
        self._adapter_queries.hold(digest)

    def release_adapter(self, digest: str) -> None:
        """End one hold_adapter()."""
        self._adapter_queries.release(digest)
        self._free_adapters()

    def _free_adapters(self) -> None:
        if self._supervisor.ready is not None:
            self._adapter_queries.free_unused(self._supervisor.ready.adapters)

    def drain(self) -> None:
        """Report the phase "draining" from now on instead of "loading" and "ready". Running requests continue."""
        self._supervisor.drain()

    async def stop(self) -> None:
        """End the engine process; requests still open raise EngineDied. Idempotent."""
        await self._supervisor.stop()

    def _send_pending(self) -> None:
        """Send the next requests, at most a frame in each turn of the event loop: large frames take long to encode."""
        if not self._is_sending:
            self._send_frame()

    def _send_frame(self) -> None:
        self._is_sending = False
        if self._supervisor.is_serving and (requests := self._requests.pop_sendable(MAX_ADDED, MAX_ADDED_IDS)):
            self._add(requests)
            if self._requests.has_pending:
                self._is_sending = True
                asyncio.get_running_loop().call_soon(self._send_frame)

    def _add(self, requests: list[Request]) -> None:
        """Send requests that are marked as sent. One that cannot be encoded fails, alone."""
        try:
            self._supervisor.send(Add(requests))
        except NOT_ENCODABLE:
            if len(requests) > 1:
                for request in requests:
                    self._add([request])
                return
            logger.exception("a request cannot be sent to the engine")
            self._give([RequestOutput(requests[0].request_id, finish_reason="error", error=NOT_SENT)])

    def _abort_in_engine(self, request_ids: list[int]) -> None:
        if request_ids:
            self._supervisor.send(Abort(request_ids))
        self._send_pending()  # others may have waited for one of these

    def _receive(self, message: FromEngine) -> None:
        match message:
            case StepDone(step, aborted):
                self._requests.confirm_aborts(aborted)
                self._on_step_done(step.outputs, step.stats)
            case OutputPart(part):
                self._parts.setdefault(part.request_id, []).append(part)
            case StepPart(outputs):
                self._give(outputs)
            case PrefillStarted(request_ids):
                self._requests.started(request_ids)
            case ExpertsReply():
                self._expert_queries.resolve(message)
            case AdapterLoaded():
                if (query := self._adapter_queries.resolve(message)) is not None:
                    replaced = self._supervisor.add_adapter(query.name, query.directory, message.digest)
                    if replaced is not None:
                        self._adapter_queries.unload(replaced)
                self._free_adapters()

    def _on_step_done(self, outputs: list[RequestOutput], stats: StepStats) -> None:
        self.stats = stats
        self._on_step(stats)
        self._give(outputs)
        self._send_pending()
        self._free_adapters()

    def _give(self, outputs: list[RequestOutput]) -> None:
        """Put each output into the collector of its request, with the parts that were sent ahead of it."""
        for output in outputs:
            if (parts := self._parts.pop(output.request_id, None)) is not None:
                output = with_parts(parts, output)
            if (collector := self._requests.take(output)) is not None:
                collector.put(output)

    def _on_ready(self) -> None:
        self._send_pending()
        self._free_adapters()

    def _on_crash(self) -> CrashReport:
        """Fail the requests that had an output; the others stay pending for the next process."""
        crash = self._requests.engine_died()
        for collector in crash.lost:
            collector.fail(CRASHED)
        if crash.culprit is not None:
            collector, output = crash.culprit
            collector.put(output)
        self._reset()
        return crash

    def _on_end(self, reason: str) -> None:
        self._reset()
        for collector in self._requests.close():
            collector.fail(reason)

    def _reset(self) -> None:
        """Forget the state of a process that is gone."""
        self.stats = StepStats(num_blocks_total=self.stats.num_blocks_total)
        self._parts.clear()
        self._expert_queries.fail(CRASHED)
        self._adapter_queries.fail(CRASHED)

    def _expire(self, now_s: float) -> None:
        """End requests whose deadline has passed, also while there is no process."""
        outputs, in_engine = self._requests.expire(now_s)
        for collector, output in outputs:
            collector.put(output)
        self._abort_in_engine(in_engine)
