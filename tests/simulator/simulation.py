"""The product's Engine, Scheduler and BlockManager over the exact model, watched from outside after every step."""

import hashlib
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.capacity.sizing import EngineLimits
from engine.config import EngineConfig
from engine.engine import Engine
from engine.scheduling.sequence import Sequence, Status
from engine.startup.loading import LoadedModel
from engine.types import Request, RequestOutput, SamplingParams, StepStats
from model.config import ModelConfig
from tests.simulator.exact import NAN, POISON, ExactRunner, experts_of, mix, oracle, root_of
from tests.simulator.faults import Clock, FakeBuilds, Faults, FaultyPool, FaultyRunner, Point
from tests.simulator.rows import rows_runner

VOCAB, NUM_LAYERS, NUM_EXPERTS, K = 97, 2, 4, 2
ENDS = ("stop", "length", "error", "queue_timeout", "timeout")


@dataclass(frozen=True)
class Setup:
    """An engine's settings."""

    num_blocks: int = 16
    block_size: int = 4
    window: int | None = None
    budget: int = 16
    max_num_seqs: int = 8
    max_model_len: int = 60
    prefix_caching: bool = True
    by_priority: bool = True
    ahead: bool = False
    eos: tuple[int, ...] = ()
    with_rows: bool = False  # the product's runner, rows and sampler as well
    first_id: int = 0


@dataclass
class Told:
    """What one request was told so far."""

    request: Request
    arrival: int = 0
    token_ids: list[int] = field(default_factory=list)
    prompt_experts: list[list[int]] | None = None
    routing: list[list[list[int]]] = field(default_factory=list)
    end: str | None = None  # of ENDS, or "cancelled"
    was_scheduled: bool = False


class Simulation:
    """One engine, its requests, and everything that must always hold. A check that fails is an AssertionError."""

    def __init__(self, setup: Setup, rng: random.Random, rates: dict[Point, float], kth: Any = None) -> None:
        self.setup = setup
        self.faults = Faults(rng, rates, kth)
        self.clock = Clock(self.faults)
        self.told: dict[int, Told] = {}
        self.open: dict[int, Told] = {}
        self.ends: dict[str, int] = dict.fromkeys((*ENDS, "cancelled"), 0)
        self.seen: dict[str, int] = defaultdict(int)
        self._num_arrivals = 0
        self._log = hashlib.blake2b(digest_size=8)
        self._model = _model_config(setup)
        self._exact = self._inner_runner()
        self.runner = FaultyRunner(self._exact, self.faults, self._set_nans, self._rot, self._cancel_somebody)
        self.engine = self._engine()
        self.scheduler = self.engine.scheduler
        pool = self.scheduler.block_manager.pool
        assert isinstance(pool, FaultyPool)
        self.pool = pool

    # What it is made of.

    def _inner_runner(self) -> Any:
        s = self.setup
        if s.with_rows:
            return rows_runner(self._model, s.num_blocks, s.block_size, s.max_num_seqs, s.max_model_len)
        return ExactRunner(s.num_blocks, s.block_size, s.window, VOCAB, NUM_LAYERS)

    def _engine(self) -> Engine:
        s = self.setup
        config = EngineConfig(
            model="",
            max_num_seqs=s.max_num_seqs,
            block_size=s.block_size,
            enable_prefix_caching=s.prefix_caching,
            scheduling_policy="priority" if s.by_priority else "fcfs",
            async_scheduling=s.ahead,
            check_integrity=True,
        )
        runner: Any = self.runner
        nothing: Any = None
        loaded = LoadedModel(
            config=self._model,
            runner=runner,
            kv_pool=nothing,
            limits=EngineLimits(s.num_blocks, s.max_model_len, s.budget),
            dtype=torch.float32,
            kv_dtype="float32",
            device=torch.device("cpu"),
            backend="exact",
            numerics="exact",
            weight_bytes=0,
            kv_block_bytes=0,
            phase_seconds={},
            warnings=(),
        )
        engine = Engine(config, loaded, clock=self.clock)
        engine.scheduler.block_manager.pool = FaultyPool(s.num_blocks, self.faults)
        builds: Any = FakeBuilds(self.faults, self.runner.blamed, VOCAB, self._arrives)
        engine._grammars = builds
        servable = engine.scheduler.block_manager.geometry.max_servable_tokens(s.num_blocks)
        engine.scheduler.max_model_len = min(s.max_model_len, servable or s.max_model_len)
        return engine

    def _arrives(self, request_id: int) -> None:
        """In the queue: from here on its order counts."""
        self._num_arrivals += 1
        self.told[request_id].arrival = self._num_arrivals

    def _set_nans(self, plan: Any, nan_ids: set[int]) -> None:
        if not self.setup.with_rows:
            self._exact.nan_ids = nan_ids
            return
        first = 0
        for chunk in plan.chunks:
            if chunk.sequence.request_id in nan_ids:
                self._exact.model.nan_rows |= set(range(first, first + chunk.length))
            first += chunk.length

    def _rot(self, plan: Any) -> set[int]:
        """One step ahead a request may take the block before anyone has seen that it is spoilt: not there."""
        if self.setup.with_rows or self.setup.ahead:
            return set()
        chunk = self.faults.rng.choice(plan.chunks)
        table = chunk.sequence.block_table[: chunk.start // self.setup.block_size]
        blocks = [block for block in table if block]
        if not blocks:
            return set()
        block = self.faults.rng.choice(blocks)
        self._exact.slots[block * self.setup.block_size] = NAN
        return {s.request_id for s in self.scheduler.requests.unfinished.values() if block in s.block_table}

    # What happens to it.

    def add(self, prompt: list[int], max_tokens: int = 8, **fields: Any) -> int:
        """Fields of Request; those of SamplingParams as a dict `params`."""
        request_id = self.setup.first_id + len(self.told)
        params = SamplingParams(max_tokens=max_tokens, **fields.pop("params", {}))
        request = Request(request_id, prompt, params, arrival_s=self.clock.now, **fields)
        self.told[request_id] = self.open[request_id] = Told(request)
        if request.grammar is None:
            self._arrives(request_id)
        self.engine.add(request)
        self._note("add", request_id, prompt, max_tokens)
        return request_id

    def cancel(self, request_id: int) -> None:
        """Twice, as a client in a hurry does."""
        is_there = request_id in self.scheduler.requests.unfinished or request_id in self.engine._grammars._pending
        self.engine.abort(request_id)
        self.engine.abort(request_id)
        if is_there:
            self._end(request_id, "cancelled")
        self._note("cancel", request_id, is_there)

    def _cancel_somebody(self) -> None:
        if self.told and self.faults.strikes("cancel"):
            recent = [
                request_id for request_id in self.told if request_id in self.open or self.faults.rng.random() < 0.1
            ]
            if recent:
                self.cancel(self.faults.rng.choice(recent))

    def step(self) -> None:
        self._cancel_somebody()
        watched = Watch(self)
        step = self.engine.step()
        watched.check(self.runner.launched)
        for output in step.outputs:
            self._tell(output)
        self._note(
            "step", *((c.sequence.request_id, c.start, c.length) for p in self.runner.launched for c in p.chunks)
        )
        for plan in self.runner.launched:
            self.seen["preemptions"] += plan.num_preemptions
            self.seen["prefix hits"] += plan.num_prefix_hits
            assert plan.num_tokens <= self.setup.budget, "more positions than the budget"
        self.seen["window blocks"] += step.stats.num_window_blocks_freed
        self.seen["steps"] += 1
        self.runner.launched = []
        self._check(watched.start, step.stats)
        self._poison()

    def run(self) -> None:
        """Until nothing is left to do, in a bounded number of steps."""
        left = self.steps_at_most()
        while self.engine.has_work():
            assert left, "no progress: requests are left, and nothing fails any more"
            left -= 1
            self.step()
        self.check_idle()

    def steps_at_most(self) -> int:
        """The first in order gains at least a position per step, or two where it sits out steps in flight."""
        work = sum(len(told.request.prompt_token_ids) + told.request.params.max_tokens for told in self.open.values())
        builds = sum(int(told.request.grammar or 0) for told in self.open.values())
        return 2 * work + builds + 4 * len(self.open) + 10

    def heal(self) -> None:
        """Nothing fails from here on; what was to fail in a certain request still does."""
        self.faults.is_on = False

    # What must hold.

    def _tell(self, output: RequestOutput) -> None:
        self._note("told", output.request_id, output.token_ids, output.finish_reason, output.error)
        told = self.open.get(output.request_id)
        assert told is not None, f"request {output.request_id} was told something after its end"
        assert not (output.finish_reason is None and not output.token_ids), "an output that says nothing"
        told.token_ids += output.token_ids
        told.routing += output.expert_routing or []
        if output.expert_prompt_tokens is not None:
            assert told.prompt_experts is None, "the experts of a prompt were told twice"
            told.prompt_experts = output.expert_prompt_tokens
        assert output.num_cached_tokens < len(told.request.prompt_token_ids) + bool(not told.was_scheduled)
        if output.finish_reason is not None:
            assert output.timing is not None
            self._end(output.request_id, output.finish_reason)
            self._check_answer(told, output)

    def _end(self, request_id: int, reason: str) -> None:
        self.open.pop(request_id).end = reason
        self.ends[reason] += 1

    def expected(self, request: Request) -> tuple[list[int], str]:
        """All its tokens, and how it ends, from the exact model alone."""
        params, prompt = request.params, request.prompt_token_ids
        room = self.scheduler.max_model_len - len(prompt)
        count = min(params.max_tokens, room)
        resolved = self._resolved(request)
        root = mix(0, resolved.experts_per_token or 0) if self.setup.with_rows else root_of(resolved)
        tokens = oracle(root, prompt, count, self.setup.window, VOCAB) if count else []
        stops = set(params.stop_token_ids) | (set() if params.ignore_eos else set(self.setup.eos))
        for number, token in enumerate(tokens, 1):
            if token in stops and number > params.min_tokens:
                return tokens[:number], "stop"
        return tokens, "length"

    @staticmethod
    def _resolved(request: Request) -> Request:
        import msgspec

        mask = request.expert_mask
        return msgspec.structs.replace(
            request,
            experts_per_token=request.experts_per_token or K,
            expert_mask=None if mask is None or all(map(all, mask)) else mask,
        )

    def _check_answer(self, told: Told, output: RequestOutput) -> None:
        request, reason = told.request, output.finish_reason
        refused = (
            not 0 < len(request.prompt_token_ids) <= self.scheduler.max_model_len - bool(request.params.max_tokens)
        )
        if refused:
            assert reason == "error" and not told.token_ids, "a request that can never fit was not refused"
            return
        tokens, end = self.expected(request)
        if reason in ("stop", "length"):
            assert (told.token_ids, reason) == (tokens, end), (
                f"request {request.request_id} got {told.token_ids} {reason}, not {tokens} {end}"
            )
            # One step ahead, a request may end well while the step behind its end is the one that fails.
            assert self.setup.ahead or not self._must_fail(request), "a fault was swallowed"
            self._check_experts(told)
            return
        assert told.token_ids == tokens[: len(told.token_ids)], f"request {request.request_id} got wrong tokens"
        if reason == "error":
            assert request.request_id in self.runner.blamed, (
                f"request {request.request_id} failed by no fault of its own: {output.error}"
            )
        elif reason == "queue_timeout":
            assert request.queue_deadline_s is not None and request.queue_deadline_s <= self.clock.now
            assert not told.was_scheduled, "its time in the queue was over when it had begun"
        else:
            assert reason == "timeout" and request.deadline_s is not None and request.deadline_s <= self.clock.now

    def _must_fail(self, request: Request) -> bool:
        return request.request_id in self.runner.cursed | self.runner.nan_ids | self.runner.bad_expert_ids

    def _check_experts(self, told: Told) -> None:
        request = told.request
        if not request.expert_usage and not request.expert_routing:
            return
        k = request.experts_per_token or K
        tokens = request.prompt_token_ids + told.token_ids
        length = len(request.prompt_token_ids)
        if request.expert_usage and told.prompt_experts is not None:
            counts = [[0] * NUM_EXPERTS for _ in range(NUM_LAYERS)]
            for position in range(length):
                for layer in range(NUM_LAYERS):
                    for expert in experts_of(tokens[position], position, layer, k, NUM_EXPERTS):
                        counts[layer][expert] += 1
            assert told.prompt_experts == counts, "the experts of the prompt are counted wrongly"
        if request.expert_routing:
            expected = [
                [experts_of(tokens[p], p, layer, k, NUM_EXPERTS) for layer in range(NUM_LAYERS)]
                for p in range(length, len(tokens) - 1)
            ]
            assert told.routing == expected, "the experts of the completion are told wrongly"

    def _check(self, start: float, stats: StepStats) -> None:
        scheduler = self.scheduler
        there = set(scheduler.requests.unfinished) | set(self.engine._grammars._pending)
        rejected = {output.request_id for output in self.engine._rejected}
        assert there | rejected == set(self.open), "a request is lost, or is kept after its end"
        assert len(self.told) == sum(self.ends.values()) + len(self.open)
        assert len(scheduler.requests.running) <= self.setup.max_num_seqs
        assert stats.num_running + stats.num_waiting == len(there)
        assert stats.num_blocks_held == self.pool.num_held <= self.setup.num_blocks
        for flight in self.engine._pipeline.in_flight:
            for chunk in flight.plan.chunks:
                has = len(chunk.sequence.block_table) * self.setup.block_size
                assert has >= chunk.start + chunk.length, "blocks are given away while a step computes them"
        for sequence in scheduler.requests.unfinished.values():
            request = sequence.request
            assert request.deadline_s is None or request.deadline_s > start, "a deadline has passed unseen"
            waits = sequence.first_scheduled_s is None and request.queue_deadline_s is not None
            assert not waits or request.queue_deadline_s > start, "a deadline of the queue has passed unseen"
            assert not sequence.block_table or sequence.status is not Status.WAITING, "blocks are held in the queue"
            self._check_window(sequence)

    def _check_window(self, sequence: Sequence) -> None:
        window, size = self.setup.window, self.setup.block_size
        if window is not None and not sequence.num_chunks_in_flight:
            held = sum(1 for block in sequence.block_table if block)
            assert held <= -(-window // size) + 1 + -(-self.setup.budget // size), "more is held than the window needs"

    def check_idle(self) -> None:
        """Nothing is left behind."""
        self.scheduler.check_integrity()
        assert not self.open, "a request ended in silence"
        assert self.pool.num_held == 0 and super(FaultyPool, self.pool).num_free == self.setup.num_blocks, (
            "blocks are lost"
        )
        left = (
            self.scheduler.requests.unfinished,
            self.scheduler.requests.running,
            self.scheduler.requests._ending,
            self.engine._pipeline.in_flight,
        )
        assert not any(map(len, left)) and not len(self.scheduler.requests.waiting), (
            "something of a request is left behind"
        )

    def _poison(self) -> None:
        """Only the light runner: what nobody may read is overwritten."""
        if isinstance(self._exact, ExactRunner):
            self._exact.poison(self.pool.unused())
            assert self._exact.slots[: self.setup.block_size] == [POISON] * self.setup.block_size, "block 0 was written"

    # What is left of it.

    def _note(self, *what: object) -> None:
        self._log.update(repr(what).encode())

    @property
    def log_hash(self) -> str:
        """Names all that happened, in order."""
        return self._log.hexdigest()


class Watch:
    """What a step does to the order of service: who was there before it, and who after."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.start = simulation.clock.now
        self.running = set(simulation.scheduler.requests.running)
        self.idle = {s for s in self.running if not s.num_chunks_in_flight}
        self.preemptions = {s: s.num_preemptions for s in simulation.scheduler.requests.unfinished.values()}

    def order(self, sequence: Sequence) -> tuple[int, int]:
        """(priority, arrival), as it was asked for."""
        told = self.simulation.told[sequence.request_id]
        return told.request.priority if self.simulation.setup.by_priority else 0, told.arrival

    def check(self, plans: list[Any]) -> None:
        for plan in plans:
            for chunk in plan.chunks:
                told = self.simulation.told[chunk.sequence.request_id]
                told.was_scheduled = True
        live = set(self.simulation.scheduler.requests.unfinished.values())
        preempted = {s for s in live if s.num_preemptions > self.preemptions.get(s, 0)}
        spared = {s for s in self.idle if s in live and s not in preempted and s.status is Status.RUNNING}
        for victim in preempted:
            assert victim in self.idle or victim not in self.running, (
                "a request was preempted while a step was computing it"
            )
            later = [s for s in spared if self.order(s) > self.order(victim)]
            assert not later, "a request was preempted before one that comes after it"
        started = {s for plan in plans for c in plan.chunks if (s := c.sequence) not in self.running}
        waiting = {s for s in live if s.status is Status.WAITING and s not in preempted}
        for sequence in started:
            assert not any(self.order(s) < self.order(sequence) for s in waiting), "the queue was overtaken"


def _model_config(setup: Setup) -> ModelConfig:
    return ModelConfig(
        architecture="MixtralForCausalLM",
        vocab_size=VOCAB,
        dim=8,
        num_layers=NUM_LAYERS,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        hidden_dim=8,
        num_experts=NUM_EXPERTS,
        experts_per_token=K,
        window=setup.window,
        context_len=4096,
        rope_theta=1e4,
        norm_eps=1e-5,
        tied_head=False,
        dtype="float32",
        bos_token_id=None,
        eos_token_ids=setup.eos,
    )
