"""Engines of simulated processes: the product's engine over the exact model, with requests that crash it."""

import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import FatalEngineError
from engine.execution.adapters import AdapterStore
from engine.execution.experts.stats import ExpertReporter
from engine.grammars.build_queue import CompiledRequest
from engine.scheduling.step_plan import Chunk, StepPlan, StepResult
from model.checkpoint.identity import CheckpointIdentity
from tests.simulator.exact import ExactRunner
from tests.simulator.faults import FakeGrammarQueue, Faults
from tests.simulator.setup import NUM_LAYERS, VOCAB, Setup, build_engine

if TYPE_CHECKING:
    from tests.simulator.system.engine_host import EngineHost

NUM_GATHERS = 4 * NUM_LAYERS + 1  # of a step of several ranks
KILLS_AT_PREFILL, KILLS_LATER, KILLS_AT_GRAMMAR = 1, 2, 3  # values of `seed`, which the exact model does not use


@dataclass
class Plan:
    """The part of a schedule's seed that decides about the engine's side."""

    setup: Setup
    descriptor: int = 7
    max_delay_s: float = 0.0
    spawn_s: float = 0.05
    load_s: float = 1.0
    step_s: float = 0.02
    max_queued: int = 40
    cut_rate: float = 0.0
    kill_rate_at_arrival: float = 0.0
    rank_death_rate: float = 0.0  # of another rank, at each gather of a step
    rank_rng: random.Random = field(default_factory=lambda: random.Random(0))  # draws these deaths and no others
    load_failure_rate: float = 0.0
    changes_weights_in: int | None = None  # from this life on, the weights are others
    heals_stops: bool = True  # a process that is stopped when the faults end continues
    is_doomed: bool = False  # after the first, no process loads
    block_counts: tuple[int, ...] = ()  # how many blocks each process would derive by itself
    chaos_is_on: bool = True
    lives_left_to_fail: int = 4
    loads: list[str | None] = field(default_factory=list)

    def weights_of_life(self, number: int) -> int:
        return int(self.changes_weights_in is not None and number >= self.changes_weights_in)

    def load_failure(self, number: int, rng: random.Random) -> str | None:
        """Return how this load fails, or None. The first load never does, and chaos fails a few only."""
        if not number:
            return None
        fails = self.chaos_is_on and self.lives_left_to_fail > 0 and rng.random() < self.load_failure_rate
        if not (fails or self.is_doomed):
            return None
        self.lives_left_to_fail -= 1
        return rng.choice(("dies", "fails", "hangs") if rng.random() < 0.2 else ("dies", "fails"))


class WeighedRunner(ExactRunner):
    """The exact model with one of several weights: 0 computes what the oracle computes."""

    weights = 0

    def _visible(self, chunk: Chunk, values: list[int]) -> list[int]:
        return super()._visible(chunk, values) + [self.weights] * bool(self.weights)


class HostRunner:
    """Runner of a simulated process: steps take virtual time, and some requests crash the process."""

    experts = ExpertReporter(None)
    adapters = AdapterStore()

    def __init__(self, host: "EngineHost", inner: ExactRunner) -> None:
        self._host, self._inner = host, inner

    def launch(self, plan: StepPlan) -> Any:
        host = self._host
        host.launched.append(plan)
        for chunk in plan.chunks:
            host.life.begun_ids.add(chunk.sequence.request_id)
        host.sleep(host.plan.step_s * host.rng.random())
        for chunk in plan.chunks:
            seed = chunk.sequence.request.params.seed
            if seed == KILLS_AT_PREFILL or (seed == KILLS_LATER and chunk.sequence.num_generated):
                host.die("a request that crashes steps")
        self._gather()
        return self._inner.launch(plan)

    def _gather(self) -> None:
        """Gather with other ranks, one of which may die meanwhile: the thread that watches them ends the process, or
        the gather fails first."""
        plan = self._host.plan
        if not (plan.chaos_is_on and plan.rank_death_rate):
            return
        for _ in range(NUM_GATHERS):
            if plan.rank_rng.random() >= plan.rank_death_rate:
                continue
            self._host.life.has_lost_a_rank = True
            self._host.truth.count("fault: a rank dies at a gather")
            if plan.rank_rng.random() < 0.5:
                self._host.die("the end of a rank")
            raise FatalEngineError("rank 1 is gone")

    def finish(self, step: Any) -> StepResult:
        return self._inner.finish(step)

    def run(self, plan: StepPlan) -> StepResult:
        return self.finish(self.launch(plan))

    def zero_blocks(self, block_ids: tuple[int, ...]) -> None:
        self._inner.zero_blocks(block_ids)

    def zero_drafts(self, plan: StepPlan) -> None:
        self._inner.zero_drafts(plan)


class HostGrammarQueue(FakeGrammarQueue):
    """Queue of grammars, one after the other: a compilation that has begun goes on after its cancel."""

    def __init__(self, host: "EngineHost", faults: Faults) -> None:
        super().__init__(faults, set(), VOCAB, host.on_queued)
        self._host = host
        self._canceled: dict[int, tuple[Any, int]] = {}

    def cancel(self, request_id: int) -> bool:
        is_first = next(iter(self._pending), None) == request_id
        entry = self._pending.pop(request_id, None)
        if entry is not None and is_first and request_id in self._host.life.begun_ids:
            self._canceled[request_id] = entry
        return entry is not None

    def is_compiling(self, request_id: int) -> bool:
        entry = self._canceled.get(request_id)
        if entry is not None:
            self._crash(*entry)
            self._canceled[request_id] = entry[0], entry[1] - 1
            if entry[1] <= 0:
                del self._canceled[request_id]
        return request_id in self._canceled

    def compiling_canceled(self) -> set[int]:
        """Return the canceled requests whose compilation goes on."""
        return set(self._canceled)

    def wait(self, timeout_s: float) -> None:
        self._host.sleep(timeout_s)

    def pop_completed(self) -> list[CompiledRequest]:
        if not self._pending or self._canceled:
            return []
        request_id, (request, calls) = next(iter(self._pending.items()))
        self._host.life.begun_ids.add(request_id)
        self._crash(request, calls)
        self._pending[request_id] = request, calls - 1
        if calls > 0:
            return []
        del self._pending[request_id]
        return [self._compiled(request)]

    def _crash(self, request: Any, calls: int) -> None:
        if request.params.seed == KILLS_AT_GRAMMAR and calls <= 1:
            self._host.die("a grammar that crashes")


def built_engine(host: "EngineHost", config: EngineConfig) -> Engine:
    """Return the engine of a process. What the config leaves open is derived, in each process anew."""
    plan = host.plan
    derived = plan.block_counts[host.life.number % len(plan.block_counts)]
    setup = replace(
        plan.setup,
        num_blocks=config.num_kv_blocks or derived,
        max_model_len=config.max_model_len or plan.setup.max_model_len,
    )
    no_faults = Faults(host.rng, {})
    runner = WeighedRunner(setup.num_blocks, setup.block_size, setup.window, VOCAB, NUM_LAYERS)
    runner.weights = host.life.weights
    clock: Any = host.loop.time
    engine = build_engine(setup, HostRunner(host, runner), clock, no_faults, HostGrammarQueue(host, no_faults))
    identity = CheckpointIdentity(f"files {host.life.weights}", f"weights {host.life.weights}")
    engine.loaded = replace(engine.loaded, checkpoint=identity)
    return engine
