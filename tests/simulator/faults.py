"""Fault injection: a clock, a block pool, a runner and grammars that fail at named points.

`Faults` decides whether a point fails: at a rate, with random numbers from the schedule's seed, or only at its k-th
passage.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from engine.errors import GrammarError
from engine.execution.experts.stats import ExpertReporter
from engine.grammars.build_queue import CompiledRequest
from engine.grammars.lookahead import Lookahead
from engine.grammars.matcher import GrammarMatcher
from engine.scheduling.blocks.pool import BlockPool
from engine.scheduling.step_plan import StepPlan, StepResult
from engine.types import Request
from tests.simulator.fake_parser import FakeForcedText, FakeParser

Point = Literal[
    "allocate",  # the pool reports fewer free blocks than it has
    "admit",  # the pool reports that nothing fits
    "raise once",  # a step raises on its first attempt
    "raise for one",  # ... whenever it contains a certain request
    "raise for all",  # ... however it is split
    "raise at the end",  # ... when its results are fetched
    "no memory",  # ... with more than a certain number of positions
    "nan",  # a chunk computes NaN
    "nan in a draft",  # ... at the positions of drafted tokens only
    "corrupt block",  # a block that an earlier step computed becomes NaN
    "bad experts",  # a chunk's expert ids are malformed
    "grammar",  # a matcher raises GrammarError
    "grammar panics",  # a matcher raises an unexpected exception
    "cancel",  # a client disconnects
    "clock",  # time jumps
]
POINTS: tuple[Point, ...] = Point.__args__  # type: ignore[attr-defined]


class Faults:
    """Fault injector: decides which points fail and counts passages and failures while it is on."""

    def __init__(self, rng: random.Random, rates: dict[Point, float], kth: tuple[Point, int] | None = None) -> None:
        self.rng = rng
        self.rates = rates
        self.kth = kth
        self.is_on = True
        self.passed: Counter[Point] = Counter()
        self.failed: Counter[Point] = Counter()

    def fails(self, point: Point) -> bool:
        if not self.is_on:
            return False
        self.passed[point] += 1
        if self.kth is not None:
            fails = self.kth == (point, self.passed[point])
        else:
            rate = self.rates.get(point, 0.0)
            fails = rate > 0 and self.rng.random() < rate
        self.failed[point] += fails
        return fails


class Clock:
    """Fake clock: each reading advances it by half a second."""

    def __init__(self, faults: Faults) -> None:
        self.now = 0.0
        self._faults = faults

    def __call__(self) -> float:
        self.now += 0.5
        if self._faults.fails("clock"):
            self.now += self._faults.rng.choice((3.0, 60.0))
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class FaultyPool(BlockPool):
    """Block pool that sometimes reports fewer free blocks than it has."""

    def __init__(self, num_blocks: int, faults: Faults) -> None:
        super().__init__(num_blocks)
        self._faults = faults

    @property
    def num_free(self) -> int:
        actual = super().num_free
        if not self._faults.fails("allocate"):
            return actual
        return 0 if self._faults.kth else self._faults.rng.randint(0, actual)

    def can_allocate(self, count: int) -> bool:
        return super().can_allocate(count) and not self._faults.fails("admit")

    def unused(self) -> list[int]:
        """Return the blocks that are neither held nor cached."""
        return [block for block in self._free if block not in self._hashes]


class BrokenStepError(RuntimeError):
    """Error that an injected fault raises in a step."""


@dataclass
class StepFailures:
    """Failures of one plan, over all attempts to compute it."""

    num_attempts_that_raise: int = 0
    max_positions: int | None = None
    raises_late: bool = False  # after all positions were computed and written


@dataclass
class FaultyRunner:
    """Wrapper of a runner. launch() is a plan's first attempt and draws its failures; run() computes parts of it.

    `inner` has the attributes nan_ids, requests whose chunks compute NaN, and nan_draft_ids, requests whose next draft
    does.
    """

    inner: Any
    faults: Faults
    corrupt_block: Callable[[StepPlan], set[int]]  # -> ids of the requests that hold the block
    cancel: Callable[[], None]  # may abort a request
    on_launch: Callable[[StepPlan], None] = lambda plan: None
    raising_ids: set[int] = field(default_factory=set)  # every step with one of them raises
    nan_ids: set[int] = field(default_factory=set)
    bad_expert_ids: set[int] = field(default_factory=set)
    may_fail_ids: set[int] = field(default_factory=set)  # requests that may end with an error
    launched: list[StepPlan] = field(default_factory=list)
    failures: StepFailures = field(default_factory=StepFailures)
    experts: ExpertReporter = field(default_factory=lambda: ExpertReporter(None))

    def launch(self, plan: StepPlan) -> Any:
        self.launched.append(plan)
        self.on_launch(plan)
        self.cancel()
        self.failures = self._draw(plan)
        return self._attempt(plan)

    def zero_blocks(self, block_ids: tuple[int, ...]) -> None:
        self.inner.zero_blocks(block_ids)

    def zero_drafts(self, plan: StepPlan) -> None:
        self.inner.zero_drafts(plan)

    def finish(self, step: Any) -> StepResult:
        self.cancel()
        if self.faults.fails("raise at the end"):
            self.failures = StepFailures()  # the failures drawn at launch do not apply to the retry
            raise BrokenStepError("fetching the results fails")
        return self._with_bad_experts(self.inner.finish(step))

    def run(self, plan: StepPlan) -> StepResult:
        return self._with_bad_experts(self.inner.finish(self._attempt(plan)))

    def _draw(self, plan: StepPlan) -> StepFailures:
        ids = [chunk.sequence.request_id for chunk in plan.chunks]
        if self.faults.fails("raise for one"):
            self.raising_ids.add(self.faults.rng.choice(ids))
        for chunk in plan.chunks:
            if self.faults.fails("nan"):
                self.nan_ids.add(chunk.sequence.request_id)
            if chunk.draft and self.faults.fails("nan in a draft"):
                self.inner.nan_draft_ids.add(chunk.sequence.request_id)
            if chunk.sequence.experts and self.faults.fails("bad experts"):
                self.bad_expert_ids.add(chunk.sequence.request_id)
        if self.faults.fails("corrupt block"):
            self.may_fail_ids |= self.corrupt_block(plan)
        self.may_fail_ids |= (self.raising_ids | self.nan_ids | self.bad_expert_ids) & set(ids)
        failures = StepFailures(raises_late=self.faults.rng.random() < 0.5)
        if self.faults.fails("raise once"):
            failures.num_attempts_that_raise = 1
        if self.faults.fails("raise for all"):
            failures.num_attempts_that_raise = 10_000
        if self.faults.fails("no memory"):
            failures.num_attempts_that_raise = 0
            failures.max_positions = self.faults.rng.choice((0, 1, 1, 2, 5))
        if failures.num_attempts_that_raise > 1 or failures.max_positions == 0:
            self.may_fail_ids |= set(ids)
        return failures

    def _attempt(self, plan: StepPlan) -> Any:
        error = self._error(plan)
        if error is not None and not self.failures.raises_late:
            raise error
        self.inner.nan_ids = self.nan_ids
        step = self.inner.launch(plan)
        if error is not None:
            raise error
        return step

    def _error(self, plan: StepPlan) -> Exception | None:
        failures = self.failures
        if failures.max_positions is not None and plan.num_tokens > failures.max_positions:
            return MemoryError("too many positions")
        if failures.num_attempts_that_raise:
            failures.num_attempts_that_raise -= 1
            return BrokenStepError("injected failure")
        if any(chunk.sequence.request_id in self.raising_ids for chunk in plan.chunks):
            return BrokenStepError("injected failure of one request")
        return None

    def _with_bad_experts(self, result: StepResult) -> StepResult:
        for request_id in self.bad_expert_ids & result.expert_choices.keys():
            result.expert_choices[request_id] = []
        return result


class FaultyMatcher:
    """Wrapper of a GrammarMatcher that fails at some call, and from then on at every call."""

    def __init__(self, request: Request, faults: Faults, may_fail_ids: set[int], inner: GrammarMatcher) -> None:
        self.request = request
        self.faults = faults
        self.may_fail_ids = may_fail_ids
        self.inner = inner
        self.error: Exception | None = None

    def prepare(self, token_ids: Sequence[int], start: int) -> bool:
        return self.inner.prepare(token_ids, start)

    def wait(self, timeout_s: float) -> None:
        pass

    def bitmask(self, token_ids: Sequence[int], start: int) -> bytes:
        if self.error is None:
            for point, error in (("grammar", GrammarError("injected")), ("grammar panics", ZeroDivisionError())):
                if self.faults.fails(point):  # type: ignore[arg-type]
                    self.error = error
                    self.may_fail_ids.add(self.request.request_id)
        if self.error is not None:
            raise self.error
        return self.inner.bitmask(token_ids, start)

    def look_ahead(self, token_ids: Sequence[int], start: int) -> Lookahead | None:
        return self.inner.look_ahead(token_ids, start)

    def draft_bitmask(self, draft: Sequence[int]) -> bytes:
        return self.inner.draft_bitmask(draft)


def _never_needed(token_ids: Sequence[int]) -> Any:
    raise AssertionError(f"the parser lost its place in the text {token_ids}")


class FakeGrammarQueue:
    """Fake of GrammarQueue without a thread: a matcher is completed after a number of pop_completed() calls."""

    def __init__(
        self,
        faults: Faults,
        may_fail_ids: set[int],
        vocab: int,
        on_compiled: Callable[[int], None],
        oracle: Callable[[Request], list[int]] | None = None,
    ) -> None:
        """`oracle` returns the tokens that the model generates for a request, which its grammar allows; None: grammars
        allow every token."""
        self._faults, self._may_fail_ids, self._vocab, self._on_compiled = faults, may_fail_ids, vocab, on_compiled
        self._oracle = oracle
        self.parser_errors: list[str] = []
        self._pending: dict[int, tuple[Request, int]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def submit(self, request: Request) -> None:
        assert request.grammar is not None
        self._pending[request.request_id] = request, int(request.grammar)

    def cancel(self, request_id: int) -> bool:
        return self._pending.pop(request_id, None) is not None

    def wait(self, timeout_s: float) -> None:
        pass

    def pop_completed(self) -> list[CompiledRequest]:
        self._pending = {i: (request, calls - 1) for i, (request, calls) in self._pending.items()}
        completed = [request for request, calls in self._pending.values() if calls < 0]
        for request in completed:
            del self._pending[request.request_id]
        return [self._compiled(request) for request in completed]

    def _compiled(self, request: Request) -> CompiledRequest:
        self._on_compiled(request.request_id)
        oracle = self._oracle
        parser: Any = FakeParser(
            None if oracle is None else cache(lambda: oracle(request)), self._vocab, self.parser_errors
        )
        forced: Any = FakeForcedText()
        inner = GrammarMatcher(parser, _never_needed, lambda: forced)
        matcher: Any = FaultyMatcher(request, self._faults, self._may_fail_ids, inner)
        return CompiledRequest(request, matcher)
