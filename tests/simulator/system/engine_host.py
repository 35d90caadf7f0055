"""One simulated engine process: the product's EngineProcess on a greenlet, which waits where the real one blocks."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import greenlet

import engine.process
from engine.config import EngineConfig, max_slots_per_tenant
from engine.engine import Engine
from engine.heartbeat import Heartbeat
from engine.types import StepOutput
from model.checkpoint.errors import CheckpointError
from tests.simulator.checks.order import OrderCheck
from tests.simulator.checks.share import ShareCheck
from tests.simulator.record import Record
from tests.simulator.system.engines import Plan, built_engine
from tests.simulator.system.link import Pipe, ServerEnd
from tests.simulator.system.truth import Life, Truth

HANG_S = 1e6


class EngineSocket:
    """The engine's end of the link, with the methods that engine/process.py calls."""

    def __init__(self, host: "EngineHost", descriptor: int) -> None:
        self._host, self._descriptor = host, descriptor
        self._received = bytearray()
        self._is_ended = False

    def fileno(self) -> int:
        return self._descriptor

    @property
    def is_readable(self) -> bool:
        return bool(self._received) or self._is_ended

    def arrive(self, received: bytes) -> None:
        self._received += received
        self._host.on_readable()

    def end(self) -> None:
        self._is_ended = True
        self._host.on_readable()

    def recv(self, size: int) -> bytes:
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def sendall(self, sent: bytes) -> None:
        self._host.send(sent)


class HostGreenlet(greenlet.greenlet):
    """The greenlet of a process; load_in_host() finds the process through it."""

    run_host: "EngineHost"


class EngineHost:
    """The process: runs, waits, is stopped, dies. All virtual time that passes in it passes in `sleep` and `wait`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, rng: random.Random, plan: Plan, truth: Truth, heartbeat: Heartbeat
    ) -> None:
        self.loop, self.rng, self.plan, self.truth = loop, rng, plan, truth
        self.pid = 100 + len(truth.lives)
        self.life = Life(len(truth.lives), plan.weights_of_life(len(truth.lives)))
        truth.lives.append(self.life)
        self.exit_code: asyncio.Future[int] = loop.create_future()
        self.socket = EngineSocket(self, plan.descriptor)
        self.engine: Engine | None = None
        self.records: dict[int, Record] = {}
        self.launched: list[Any] = []
        self._heartbeat = heartbeat
        self._unsent_ids: set[int] = set()  # requests of which the last steps gave an output
        self._num_steps = 0
        self._to_server: Pipe | None = None
        self._greenlet = HostGreenlet(self._main)
        self._greenlet.run_host = self
        self._is_stopped = self._is_due = False  # stopped by a signal; to be resumed when it continues
        self._waits_for_input = False
        self._wake_up: asyncio.TimerHandle | None = None

    def connect(self, server_end: ServerEnd) -> None:
        """Join both ends and let the process run."""
        delay_s = self.plan.max_delay_s
        self._to_server = Pipe(self.loop, self.rng, delay_s, server_end.receive, server_end.receive_end)
        server_end.to_engine = Pipe(self.loop, self.rng, delay_s, self.socket.arrive, self.socket.end)
        self._resume_in(self.plan.spawn_s)

    # Signals

    def signal(self, number: int) -> None:
        """Deliver a signal to the process."""
        if not self.life.is_alive:
            return
        if number == signal.SIGKILL:
            self._end("SIGKILL", -signal.SIGKILL)
        elif number == signal.SIGSTOP:
            self._is_stopped = True
        elif number == signal.SIGCONT and self._is_stopped:
            self._is_stopped = False
            if self._is_due:
                self.loop.call_soon(self._resume)

    def die(self, how: str) -> None:
        """End the process from inside; never returns to the caller."""
        self._end(how, -signal.SIGSEGV)
        self._switch_out()

    def free(self) -> None:
        """Free what the process holds, at the end of a simulation."""
        if self._greenlet:
            self._greenlet.throw()

    def _end(self, how: str, code: int) -> None:
        assert self.life.is_alive
        self.life.is_alive = False
        self.life.ids_at_end = frozenset(self.ids_inside())
        self.life.how = how
        self.truth.ended.append(self.life)
        self.truth.note(self.loop.time(), f"engine {self.pid} ends: {how}; it had {sorted(self.life.ids_at_end)}")
        self.truth.count(f"ended by {how}")
        if self._wake_up is not None:
            self._wake_up.cancel()
        assert self._to_server is not None
        has_child = self.rng.random() < 0.05  # that keeps the socket open for a while
        self._to_server.end(extra_s=self.rng.random() * 3 if has_child else 0.0)
        delay_s = self.rng.choice((0.0, 0.0, 0.01, 0.2))
        self.loop.call_later(delay_s, lambda: self.exit_code.done() or self.exit_code.set_result(code))

    def ids_inside(self) -> set[int]:
        """Return the requests in the engine, aborted ones that it still works on included."""
        if self.engine is None:
            return set()
        grammars: Any = self.engine._grammars
        return set(self.engine.scheduler.requests.unfinished) | set(grammars._pending) | grammars.compiling_canceled()

    # Running and waiting

    def _main(self) -> None:
        try:
            code = engine.process.EngineProcess(engine.process.Channel(self.socket), self._heartbeat).run()  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 (a traceback of the real process)
            self.truth.violate(f"the engine process raised {error!r}")
            code = 1
        if code == engine.process.CRASH and not self.life.has_lost_a_rank:
            self.truth.violate(f"engine {self.pid} ended itself without a fault")
        self._end(f"exit {code}", code)

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass in the process."""
        self._waits_for_input = False
        self._resume_in(seconds)
        self._switch_out()

    def wait(self, timeout_s: float) -> bool:
        """Wait for input; return whether there is some."""
        if not self.socket.is_readable and timeout_s > 0:
            self._waits_for_input = True
            self._resume_in(timeout_s)
            self._switch_out()
        return self.socket.is_readable

    def on_readable(self) -> None:
        if self._waits_for_input and self.life.is_alive:
            self._waits_for_input = False
            self._resume_in(0.0)

    def _resume_in(self, seconds: float) -> None:
        if self._wake_up is not None:
            self._wake_up.cancel()
        self._wake_up = self.loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if not self.life.is_alive:
            return
        self._is_due = self._is_stopped
        if not self._is_stopped:
            self._greenlet.switch()

    def _switch_out(self) -> None:
        assert self._greenlet.parent is not None
        self._greenlet.parent.switch()

    def send(self, sent: bytes) -> None:
        """Send to the server. With the rate of the plan the process dies in the middle."""
        assert self._to_server is not None
        if self.plan.chaos_is_on and self.rng.random() < self.plan.cut_rate:
            self._to_server.send(sent[: self.rng.randrange(len(sent))])
            self.die("a cut message")
        self._to_server.send(sent)
        self.life.output_ids |= self._unsent_ids
        self._unsent_ids = set()

    # Loading and stepping

    def load(self, config: EngineConfig, on_progress: Callable[[str, int, int], None]) -> Engine:
        """Load, as Engine.load does, in virtual time; fail as the plan says."""
        on_progress("weights", 0, 10)
        self.sleep(self.plan.load_s)
        how = self.plan.load_failure(self.life.number, self.rng)
        if how == "hangs":
            self.sleep(HANG_S)
        if how == "dies":
            self.die("a crash while loading")
        if how == "fails":
            raise CheckpointError("the checkpoint is damaged")
        self.engine = built_engine(self, config)
        self._shares = ShareCheck(self.engine.scheduler, may_lack_blocks=False)
        self.engine.scheduler.plan = self._shares.plan  # type: ignore[method-assign]
        self.engine.step, self.engine.add = self._step, self._add  # type: ignore[method-assign]
        self.engine.abort = self._abort  # type: ignore[method-assign]
        self.life.was_ready = True
        self.truth.note(self.loop.time(), f"engine {self.pid} is ready with weights {self.life.weights}")
        return self.engine

    def _add(self, request: Any) -> None:
        assert self.engine is not None
        if request.request_id in self.life.received_ids:
            self.truth.violate(f"request {request.request_id} was sent twice to one engine")
        self._maybe_die_at_arrival()
        self.life.received_ids.add(request.request_id)
        self.records[request.request_id] = Record(request)
        if request.grammar is None:
            self.on_queued(request.request_id)
        Engine.add(self.engine, request)

    def _check_slots(self) -> None:
        """Check that no tenant has all running slots."""
        assert self.engine is not None
        running = Counter(sequence.tenant for sequence in self.engine.scheduler.requests.running)
        limit = max_slots_per_tenant(self.plan.setup.max_num_seqs)
        assert max(running.values(), default=0) <= limit, f"a tenant has more than its slots: {running}"

    def _abort(self, request_id: int) -> None:
        assert self.engine is not None
        self._maybe_die_at_arrival()
        Engine.abort(self.engine, request_id)

    def _maybe_die_at_arrival(self) -> None:
        if self.plan.chaos_is_on and self.rng.random() < self.plan.kill_rate_at_arrival:
            self.die("SIGKILL")

    def on_queued(self, request_id: int) -> None:
        """Note the arrival in the scheduler's queue."""
        self.records[request_id].arrival = sum(1 for record in self.records.values() if record.arrival) + 1

    def _step(self) -> StepOutput:
        assert self.engine is not None
        order = OrderCheck(self.engine.scheduler, self.records, self.plan.setup, self._num_steps)
        self._num_steps += 1
        step = Engine.step(self.engine)
        order.check(self.launched, self._shares.spent)
        self._check_slots()
        self.launched = []
        self.truth.count("steps")
        self._unsent_ids |= {output.request_id for output in step.outputs}
        return step
