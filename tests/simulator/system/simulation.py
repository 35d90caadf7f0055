"""The server's engine client and admission, two tenants' clients and the engine processes, in virtual time."""

import asyncio
import random
import signal
from collections.abc import Iterable

from engine.config import EngineConfig
from server.engine_client.client import EngineClient
from server.engine_client.status import EngineStatus
from server.engine_client.supervisor import SupervisorConfig
from server.engine_client.watchdog import WatchdogTimeouts
from server.generation.admission import Admission
from tests.simulator.system.clients import Choice, Generation, ask_about_experts, run_client
from tests.simulator.system.engines import Plan
from tests.simulator.system.machine import Machine, simulated_system
from tests.simulator.system.truth import Truth

TIMEOUTS = WatchdogTimeouts(observe_interval_s=0.5, stuck_after_s=3.0, kill_after_s=10.0, kill_loading_after_s=20.0)
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "continue": signal.SIGCONT}
HEALED_WITHIN_S = 900.0  # without faults every request ends in this time: bounded delays of restarts, bounded work


class SystemSimulation:
    """One server and its clients. `run` returns when every client has its end, and checks nothing."""

    def __init__(self, rng: random.Random, plan: Plan) -> None:
        self.rng, self.plan, self.truth = rng, plan, Truth()
        self.machine = Machine(rng, plan, self.truth)
        self.choices: dict[int, Choice] = {}
        self.statuses: list[EngineStatus] = []
        self._has_loaded = asyncio.Event()  # or has failed to
        self.stopped_s: float | None = None
        self.left_in_book: dict[str, list[int]] = {}  # before the server was stopped
        self.dead_s: float | None = None
        self.client: EngineClient
        self.admission: Admission

    def note(self, text: str) -> None:
        self.truth.note(self.machine.time(), text)

    def end(self, choice: Choice, how: str, error: str | None = None) -> None:
        """Record the end of a choice for its client."""
        if choice.end is not None:
            self.truth.violate(f"request {choice.request.request_id} ended twice: {choice.end}, then {how}")
        choice.end, choice.error, choice.ended_s = how, error, self.machine.time()
        if (host := self.machine.host) is not None:
            choice.ids_in_engine = frozenset(host.ids_inside()) if host.life.is_alive else host.life.ids_at_end
        choice.num_engines_ended, choice.num_engines_started = len(self.truth.ended), len(self.truth.lives)
        self.note(f"request {choice.request.request_id} ends: {how} {error or ''}")
        self.truth.count(f"request: {how}")

    def run(
        self, generations: list[tuple[float, Generation]], chaos: list[tuple[float, str]], num_questions: int
    ) -> None:
        """Run all clients against the faults of `chaos` (seconds, what); then stop the server."""
        with simulated_system(self.machine):
            try:
                self.machine.run_until_complete(self._run(generations, chaos, num_questions))
            finally:
                self._cancel_all()

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self.machine)
        for task in tasks:
            task.cancel()
        if tasks:
            self.machine.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.machine.close()

    async def _run(
        self, generations: list[tuple[float, Generation]], chaos: list[tuple[float, str]], num_questions: int
    ) -> None:
        config = SupervisorConfig(restarts=True, timeouts=TIMEOUTS)
        self.client = EngineClient(config, on_status=self._on_status)
        self.client._expert_queries._clock = self.machine.time
        self.admission = Admission(self.client, self.plan.max_queued, num_tenants=2)
        await self.client.start(EngineConfig(model="", num_tenants=2))
        await self._has_loaded.wait()
        for _, generation in generations:
            self.choices |= generation.choices
        clients = [asyncio.ensure_future(run_client(self, generation, at_s)) for at_s, generation in generations]
        clients += [
            asyncio.ensure_future(ask_about_experts(self, self.rng, self.rng.random() * 5))
            for _ in range(num_questions)
        ]
        for at_s, what in chaos:
            self.machine.call_later(at_s, self._inject, what)
        self.machine.call_later(max((at_s for at_s, _ in chaos), default=0.0) + 0.1, self._heal)
        _, unfinished = await asyncio.wait(clients, timeout=HEALED_WITHIN_S) if clients else (None, set())
        if unfinished:
            open_ids = [id_ for id_, choice in self.choices.items() if choice.end is None]
            self.truth.violate(f"requests {open_ids} got no end")
        for task in clients:
            if task.done() and task.exception() is not None:
                self.truth.violate(f"a client failed: {task.exception()!r}")
        await self._settle()
        self.left_in_book = self.book()
        await self.client.stop()

    async def _settle(self) -> None:
        """Wait until the engine has confirmed all aborts, then for one audit of the idle engine."""
        for _ in range(200):
            if self.client.status.phase == "dead":
                return
            if self.client.status.phase in ("ready", "draining") and not self.client._requests._aborting:
                break
            await asyncio.sleep(0.5)
        await asyncio.sleep(1.5)

    def book(self) -> dict[str, list[int]]:
        """Return the ids in each table of the in-flight requests that is not empty."""
        requests = self.client._requests
        tables: dict[str, Iterable[int]] = {
            "open": requests._open,
            "pending": requests._pending,
            "suspects": requests._suspects,
            "timed": requests._timed,
            "aborting": requests._aborting,
            "probing": [] if requests._probing is None else [requests._probing],
        }
        return {name: sorted(ids) for name, ids in tables.items() if ids}

    def _inject(self, what: str) -> None:
        host = self.machine.host
        self.truth.count(f"fault: {what}")
        self.note(f"fault: {what}")
        if what == "shut down":
            self.stopped_s = self.machine.time()
            self.machine.create_task(self.client.stop())
        elif what == "drain":
            self.client.drain()
        elif host is not None:
            host.signal(SIGNALS[what])

    def _heal(self) -> None:
        """End all chaos; requests that crash engines and doomed loads remain."""
        self.plan.chaos_is_on = False
        self.note("no more faults")
        if self.machine.host is not None and self.plan.heals_stops:
            self.machine.host.signal(signal.SIGCONT)

    def _on_status(self, status: EngineStatus) -> None:
        if not self.statuses or self.statuses[-1].phase != status.phase:
            self.note(f"status {status.phase} {status.message or ''}")
            if status.phase == "dead":
                self.dead_s = self.machine.time()
        self.statuses.append(status)
        if status.phase not in ("loading", "restarting"):
            self._has_loaded.set()
