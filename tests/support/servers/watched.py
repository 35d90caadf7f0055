"""A server with a real engine process in the test's event loop, where every step can be observed."""

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

from engine.config import EngineConfig
from engine.messages import ExpertsQuery, ExpertsReply, FromEngine
from engine.types import Request, RequestOutput, StepStats
from server.chat.template import ChatTemplate
from server.engine_client.client import EngineClient
from server.engine_client.output_collector import OutputCollector
from server.generation.generation_defaults import GenerationDefaults
from server.generation.state import ServerState, TextFrontend
from server.http.connections import Connections
from server.model_files.location import locate_model
from server.observability.metrics import Metrics
from server.tokenizer.tokenizer import load_tokenizer
from tests.support.servers.inline_sandbox import InlineSandbox
from tests.support.servers.running import MODEL
from tests.support.servers.serving import listening


class WatchedEngine(EngineClient):
    """Counts steps, and outputs of aborted requests that the engine computed after it had read the abort.

    Each abort is followed by a query: the engine has read the abort when it replies to the query.
    """

    def __init__(self) -> None:
        self.is_ready = asyncio.Event()
        super().__init__(on_status=lambda status: self.is_ready.set() if status.phase == "ready" else None)
        self.num_steps = 0
        self.num_preemptions = 0
        self.seeds: dict[int, int] = {}  # seed of each submitted request -> number of steps before it
        self.aborted: set[int] = set()
        self.computed_after_abort: set[int] = set()
        self._abort_read: set[int] = set()
        self._abort_queries: dict[int, set[int]] = {}  # by query id
        self._query_ids = itertools.count(1)
        self._stepped = asyncio.Condition()

    def submit(self, requests: Sequence[Request]) -> OutputCollector:
        self.seeds |= {request.params.seed: self.num_steps for request in requests}
        self._wake()
        return super().submit(requests)

    def abort(self, request_ids: Iterable[int]) -> None:
        ids = set(request_ids) & self._requests._open.keys()
        super().abort(ids)
        if ids:
            self.aborted |= ids
            query_id = next(self._query_ids)
            self._abort_queries[query_id] = ids
            self._supervisor.send(ExpertsQuery(query_id))

    def _receive(self, message: FromEngine) -> None:
        if isinstance(message, ExpertsReply):
            self._abort_read |= self._abort_queries.pop(message.query_id)
        else:
            super()._receive(message)

    def _on_step_done(self, outputs: list[RequestOutput], stats: StepStats) -> None:
        self.num_steps += 1
        self.num_preemptions += stats.num_preemptions
        self.computed_after_abort |= self._abort_read & {output.request_id for output in outputs}
        super()._on_step_done(outputs, stats)
        self._wake()

    def _wake(self) -> None:
        self._notifying = asyncio.ensure_future(self._notify())

    async def _notify(self) -> None:
        async with self._stepped:
            self._stepped.notify_all()

    async def steps(self, count: int, since: int | None = None) -> None:
        """Wait for `count` more steps, counted from step `since` or from now."""
        until = (self.num_steps if since is None else since) + count
        async with self._stepped:
            await self._stepped.wait_for(lambda: self.num_steps >= until)

    async def submitted(self, seed: int) -> int:
        """Wait until the request with this seed was submitted; return the number of steps before it."""
        async with self._stepped:
            await self._stepped.wait_for(lambda: seed in self.seeds)
        return self.seeds[seed]

    async def wait_for_requests(self, count: int) -> None:
        """Stop the engine until `count` requests were submitted, so that they run together."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGSTOP)
        try:
            async with self._stepped:
                await self._stepped.wait_for(lambda: self.num_open >= count)
        finally:
            os.kill(self.pid, signal.SIGCONT)

    async def idle(self) -> None:
        """Wait until no request is open and no block is held."""
        async with self._stepped:
            await self._stepped.wait_for(lambda: not self.num_open and not self.stats.num_blocks_held)


@contextlib.asynccontextmanager
async def watched_server(
    *, max_num_queued: int = 4096, num_tenants: int = 1, **settings: object
) -> AsyncIterator[tuple[str, WatchedEngine, ServerState, Connections]]:
    """Yield URL, engine, state and connections of a server with the bundled model. `settings`: those of the engine."""
    model_dir = locate_model(None, Path())
    tokenizer = load_tokenizer(model_dir)
    engine = WatchedEngine()
    state = ServerState(
        engine=engine,
        metrics=Metrics(MODEL),
        model_names=(MODEL,),
        max_num_queued=max_num_queued,
        num_tenants=num_tenants,
        version="0",
        created_s=1,
        texts=TextFrontend(
            tokenizer, ChatTemplate(tokenizer.chat_template, tokenizer), GenerationDefaults(), InlineSandbox()
        ),
    )
    engine._on_step = state.metrics.record_step
    config = EngineConfig(model=str(model_dir), threads=1, check_integrity=True, **settings)  # type: ignore[arg-type]
    await engine.start(config)
    try:
        async with asyncio.timeout(120):
            await engine.is_ready.wait()
        connections = Connections()
        async with listening(state, connections=connections) as url:
            yield url, engine, state, connections
    finally:
        await engine.stop()
