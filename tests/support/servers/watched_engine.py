"""An EngineClient with fake_engine_process.py, for tests that wait for its status changes."""

import asyncio
import contextlib
import itertools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from engine.config import EngineConfig
from engine.types import Request, RequestOutput, SamplingParams, StepStats
from server.engine_client.client import EngineClient
from server.engine_client.output_collector import OutputCollector
from server.engine_client.status import EngineStatus
from server.engine_client.supervisor import SupervisorConfig
from server.engine_client.watchdog import DEFAULT_TIMEOUTS, WatchdogTimeouts

SCRIPT = Path(__file__).with_name("fake_engine_process.py")


class Watched:
    """A client, its reports, and a way to wait for a phase."""

    def __init__(self, mode: str, *, restarts: bool = False, timeouts: WatchdogTimeouts = DEFAULT_TIMEOUTS) -> None:
        self.statuses: list[EngineStatus] = []
        self.steps: list[StepStats] = []
        self.num_restarts = 0
        self._changed = asyncio.Event()
        config = SupervisorConfig((sys.executable, str(SCRIPT), mode), restarts, timeouts)
        self.client = EngineClient(
            config, on_step=self.steps.append, on_status=self._on_status, on_restart=self._on_restart
        )

    def _on_restart(self) -> None:
        self.num_restarts += 1

    def _on_status(self, status: EngineStatus) -> None:
        self.statuses.append(status)
        self._changed.set()

    async def reach(self, phase: str) -> EngineStatus:
        while self.client.status.phase != phase:
            await self.next_status()
        return self.client.status

    async def next_status(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    @property
    def phases(self) -> list[str]:
        """All phases so far, in order, without repetitions."""
        return [phase for phase, _ in itertools.groupby(status.phase for status in self.statuses)]

    def request(self, prompt_len: int = 3, max_tokens: int = 4, *, marker: int | None = None) -> Request:
        """Return a new request. `marker`: a token of fake_engine_process.py with an effect, put into the prompt."""
        params = SamplingParams(max_tokens=max_tokens)
        prompt = [*range(prompt_len - 1), prompt_len - 1 if marker is None else marker]
        return Request(self.client.new_request_id(), prompt, params)

    @property
    def pid(self) -> int:
        assert self.client.pid is not None
        return self.client.pid


@contextlib.asynccontextmanager
async def started(
    mode: str, *, restarts: bool = False, timeouts: WatchdogTimeouts = DEFAULT_TIMEOUTS
) -> AsyncIterator[Watched]:
    watched = Watched(mode, restarts=restarts, timeouts=timeouts)
    await watched.client.start(EngineConfig(model="/nowhere"))
    try:
        yield watched
    finally:
        await watched.client.stop()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(scenario(), 30)

    asyncio.run(limited())


async def collect(collector: OutputCollector) -> RequestOutput:
    """Wait for the last output and return all as one."""
    token_ids: list[int] = []
    while True:
        for output in await collector.get():
            token_ids += output.token_ids
            if output.finish_reason is not None:
                return RequestOutput(output.request_id, token_ids, finish_reason=output.finish_reason)
