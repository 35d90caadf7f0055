"""Where the simulator makes things go wrong: a clock, a block pool, a runner and a grammar that do as they are told.

Every place that can fail is a *point* with a name. Whether it fails there is decided by `Faults`: at a rate, drawn from
the schedule's seed, or at the k-th passage alone.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.errors import GrammarError
from engine.execution.expert_stats import ExpertReporter
from engine.grammars.build_queue import CompiledRequest
from engine.scheduling.block_pool import BlockPool
from engine.scheduling.step_plan import StepPlan, StepResult
from engine.types import Request

Point = Literal[
    "allocate",  # the pool has fewer blocks than it has
    "admit",  # the pool says that nothing fits
    "raise once",  # a step raises when it is first tried
    "raise for one",  # ... whenever it has this request in it
    "raise for all",  # ... however it is cut
    "raise at the end",  # ... when its results are fetched
    "no memory",  # ... with more than so many positions
    "nan",  # a chunk computes what is no number
    "rotten block",  # what an earlier step computed is no number any more
    "bad experts",  # what a chunk's experts are said to be makes no sense
    "grammar",  # a matcher gives up
    "grammar panics",  # a matcher raises what it never should
    "cancel",  # a client is gone, now
    "clock",  # time leaps
]
POINTS: tuple[Point, ...] = Point.__args__  # type: ignore[attr-defined]


class Faults:
    """Decides, and counts how often each point was passed while faults were on."""

    def __init__(self, rng: random.Random, rates: dict[Point, float], kth: tuple[Point, int] | None = None) -> None:
        self.rng = rng
        self.rates = rates
        self.kth = kth
        self.is_on = True
        self.passed: Counter[Point] = Counter()
        self.struck: Counter[Point] = Counter()

    def strikes(self, point: Point) -> bool:
        if not self.is_on:
            return False
        self.passed[point] += 1
        if self.kth is not None:
            struck = self.kth == (point, self.passed[point])
        else:
            rate = self.rates.get(point, 0.0)
            struck = rate > 0 and self.rng.random() < rate
        self.struck[point] += struck
        return struck


class Clock:
    """Seconds that pass because somebody looks."""

    def __init__(self, faults: Faults) -> None:
        self.now = 0.0
        self._faults = faults

    def __call__(self) -> float:
        self.now += 0.5
        if self._faults.strikes("clock"):
            self.now += self._faults.rng.choice((3.0, 60.0))
        return self.now


class FaultyPool(BlockPool):
    """Has fewer blocks than it has, now and then."""

    def __init__(self, num_blocks: int, faults: Faults) -> None:
        super().__init__(num_blocks)
        self._faults = faults

    @property
    def num_free(self) -> int:
        really = super().num_free
        if not self._faults.strikes("allocate"):
            return really
        return 0 if self._faults.kth else self._faults.rng.randint(0, really)

    def can_allocate(self, count: int) -> bool:
        return super().can_allocate(count) and not self._faults.strikes("admit")

    def unused(self) -> list[int]:
        """Blocks that nobody holds and nobody can find."""
        return [block for block in self._free if block not in self._hashes]


class BrokenStepError(RuntimeError):
    """What a step raises here."""


@dataclass
class StepTrouble:
    """What goes wrong with one plan, however often it is tried."""

    num_attempts_that_raise: int = 0
    max_positions: int | None = None
    raises_late: bool = False  # after everything was computed and written
    raises_at_the_end: bool = False


@dataclass
class FaultyRunner:
    """Around a runner: `launch` is a plan's first attempt, and draws what is to go wrong; `run` tries parts of it."""

    inner: Any
    faults: Faults
    set_nans: Callable[[StepPlan, set[int]], None]  # which requests of the plan compute no numbers
    rot: Callable[[StepPlan], set[int]]  # spoils a block -> the requests that have it
    cancel: Callable[[], None]
    cursed: set[int] = field(default_factory=set)  # raise whenever they are in a step
    nan_ids: set[int] = field(default_factory=set)
    bad_expert_ids: set[int] = field(default_factory=set)
    blamed: set[int] = field(default_factory=set)  # those that may end with an error
    launched: list[StepPlan] = field(default_factory=list)
    trouble: StepTrouble = field(default_factory=StepTrouble)
    experts: ExpertReporter = field(default_factory=lambda: ExpertReporter(None))

    def launch(self, plan: StepPlan) -> Any:
        self.launched.append(plan)
        self.cancel()
        self.trouble = self._draw(plan)
        return self._attempt(plan)

    def zero_blocks(self, block_ids: tuple[int, ...]) -> None:
        self.inner.zero_blocks(block_ids)

    def finish(self, step: Any) -> StepResult:
        self.cancel()
        if self.faults.strikes("raise at the end"):
            self.trouble = StepTrouble()  # that of the step before it is over
            raise BrokenStepError("when the results were fetched")
        return self._spoilt(self.inner.finish(step))

    def run(self, plan: StepPlan) -> StepResult:
        return self._spoilt(self.inner.finish(self._attempt(plan)))

    def _draw(self, plan: StepPlan) -> StepTrouble:
        ids = [chunk.sequence.request_id for chunk in plan.chunks]
        if self.faults.strikes("raise for one"):
            self.cursed.add(self.faults.rng.choice(ids))
        for chunk in plan.chunks:
            if self.faults.strikes("nan"):
                self.nan_ids.add(chunk.sequence.request_id)
            if chunk.sequence.experts and self.faults.strikes("bad experts"):
                self.bad_expert_ids.add(chunk.sequence.request_id)
        if self.faults.strikes("rotten block"):
            self.blamed |= self.rot(plan)
        self.blamed |= (self.cursed | self.nan_ids | self.bad_expert_ids) & set(ids)
        trouble = StepTrouble(raises_late=self.faults.rng.random() < 0.5)
        if self.faults.strikes("raise once"):
            trouble.num_attempts_that_raise = 1
        if self.faults.strikes("raise for all"):
            trouble.num_attempts_that_raise = 10_000
        if self.faults.strikes("no memory"):
            trouble.num_attempts_that_raise = 0
            trouble.max_positions = self.faults.rng.choice((0, 1, 1, 2, 5))
        if trouble.num_attempts_that_raise > 1 or trouble.max_positions == 0:
            self.blamed |= set(ids)
        return trouble

    def _attempt(self, plan: StepPlan) -> Any:
        error = self._error(plan)
        if error is not None and not self.trouble.raises_late:
            raise error
        self.set_nans(plan, self.nan_ids)
        step = self.inner.launch(plan)
        if error is not None:
            raise error
        return step

    def _error(self, plan: StepPlan) -> Exception | None:
        trouble = self.trouble
        if trouble.max_positions is not None and plan.num_tokens > trouble.max_positions:
            return MemoryError("so many positions")
        if trouble.num_attempts_that_raise:
            trouble.num_attempts_that_raise -= 1
            return BrokenStepError("as it was told to")
        if any(chunk.sequence.request_id in self.cursed for chunk in plan.chunks):
            return BrokenStepError("for one of its requests")
        return None

    def _spoilt(self, result: StepResult) -> StepResult:
        for request_id in self.bad_expert_ids & result.expert_choices.keys():
            result.expert_choices[request_id] = []
        return result


class FaultyMatcher:
    """Allows every token, until it fails."""

    def __init__(self, request: Request, faults: Faults, blamed: set[int], vocab: int) -> None:
        self.request = request
        self.faults = faults
        self.blamed = blamed
        self.mask = b"\xff" * (4 * -(-vocab // 32))
        self.broken: Exception | None = None

    def bitmask(self, token_ids: Sequence[int], start: int) -> bytes:
        if self.broken is None:
            for point, error in (("grammar", GrammarError("no way on")), ("grammar panics", ZeroDivisionError())):
                if self.faults.strikes(point):  # type: ignore[arg-type]
                    self.broken = error
                    self.blamed.add(self.request.request_id)
        if self.broken is not None:
            raise self.broken
        return self.mask


class FakeBuilds:
    """Stands where GrammarQueue stands, without a thread: a matcher is there after a number of looks."""

    def __init__(self, faults: Faults, blamed: set[int], vocab: int, on_built: Callable[[int], None]) -> None:
        self._faults, self._blamed, self._vocab, self._on_built = faults, blamed, vocab, on_built
        self._pending: dict[int, tuple[Request, int]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def start(self, request: Request) -> None:
        assert request.grammar is not None
        self._pending[request.request_id] = request, int(request.grammar)

    def forget(self, request_id: int) -> bool:
        return self._pending.pop(request_id, None) is not None

    def wait(self, timeout_s: float) -> None:
        pass

    def take_built(self) -> list[CompiledRequest]:
        self._pending = {i: (request, looks - 1) for i, (request, looks) in self._pending.items()}
        built = [request for request, looks in self._pending.values() if looks < 0]
        for request in built:
            del self._pending[request.request_id]
        return [self._built(request) for request in built]

    def _built(self, request: Request) -> CompiledRequest:
        self._on_built(request.request_id)
        matcher: Any = FaultyMatcher(request, self._faults, self._blamed, self._vocab)
        return CompiledRequest(request, matcher)
