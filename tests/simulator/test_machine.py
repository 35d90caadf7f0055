"""Scheduler and pool under Hypothesis, which shrinks a failure to a script of a few lines."""

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.scheduling.step_plan import RowFailed
from tests.support.scheduler_bench import VOCAB, Bench

TOKENS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12)
STEM = list(range(20))


class SchedulerMachine(RuleBasedStateMachine):
    """Rules plan, compute and apply steps one by one, so that a request may end in between."""

    @initialize(
        window=st.sampled_from([None, None, 3, 8]),
        budget=st.sampled_from([1, 3, 16]),
        ahead=st.booleans(),
        prefix_caching=st.booleans(),
    )
    def start(self, window: int | None, budget: int, ahead: bool, prefix_caching: bool) -> None:
        self.bench = Bench(
            num_blocks=10, window=window, budget=budget, max_num_seqs=4, max_model_len=40, prefix_caching=prefix_caching
        )
        self.max_in_flight = 2 if ahead else 1
        self.taken: list[int] = []  # blocks held outside the scheduler
        self.cancelled: set[int] = set()
        self.failed: set[int] = set()

    @rule(own=TOKENS, shared=st.integers(0, 20), max_tokens=st.integers(0, 12), priority=st.integers(-1, 1))
    def add(self, own: list[int], shared: int, max_tokens: int, priority: int) -> None:
        self.bench.add((STEM[:shared] + own)[:39], max_tokens, priority)

    @rule(which=st.integers(0, 10))
    def cancel(self, which: int) -> None:
        unfinished = list(self.bench.scheduler.requests.unfinished)
        if unfinished:
            request_id = unfinished[which % len(unfinished)]
            assert self.bench.scheduler.abort(request_id)
            assert not self.bench.scheduler.abort(request_id)
            self.cancelled.add(request_id)

    @rule()
    def abort_all(self) -> None:
        for request_id in list(self.bench.scheduler.requests.unfinished):
            assert self.bench.scheduler.abort(request_id)
            self.cancelled.add(request_id)

    @precondition(lambda self: len(self.bench.in_flight) < self.max_in_flight)
    @rule()
    def plan(self) -> None:
        bench = self.bench
        plan = bench.scheduler.plan(bench.now)
        assert plan.num_tokens <= bench.budget
        if plan.chunks:
            bench.runner.zero_blocks(plan.blocks_to_zero)
            bench.in_flight.append((plan, bench.runner.run(plan)))

    @precondition(lambda self: self.bench.in_flight)
    @rule()
    def apply(self) -> None:
        self.bench.apply(*self.bench.in_flight.pop(0))

    @precondition(lambda self: self.bench.in_flight)
    @rule(which=st.integers(0, 10))
    def fail(self, which: int) -> None:
        plan, result = self.bench.in_flight.pop(0)
        request_id = plan.chunks[which % len(plan.chunks)].sequence.request_id
        if request_id in self.bench.scheduler.requests.unfinished:
            self.failed.add(request_id)
        result.sampled[request_id] = RowFailed("injected failure")
        self.bench.apply(plan, result)

    @rule(count=st.integers(1, 10))
    def shrink(self, count: int) -> None:
        """Take free blocks: requests that need one must preempt."""
        pool = self.bench.block_manager.pool
        self.taken += pool.allocate(min(count, pool.num_free))

    @rule()
    def give_back(self) -> None:
        self.bench.block_manager.pool.decref(self.taken)
        self.taken = []

    @rule()
    def drain(self) -> None:
        self.give_back()
        while self.bench.in_flight:
            self.apply()
        self.bench.run()

    @invariant()
    def every_block_is_accounted_for(self) -> None:
        if not hasattr(self, "bench"):
            return
        scheduler, pool = self.bench.scheduler, self.bench.block_manager.pool
        pool.check_integrity([*scheduler.requests.block_tables(), self.taken])
        scheduler.requests.check_integrity()
        ended = len(self.bench.finished) + len(self.cancelled)
        assert len(self.bench.requests) == ended + len(scheduler.requests.unfinished)
        self.bench.runner.poison(block for block in pool._free if block not in pool._hashes)

    def teardown(self) -> None:
        """Requests that were not cancelled and did not fail got their own tokens."""
        if not hasattr(self, "bench"):
            return
        self.drain()
        for request_id in self.bench.requests:
            tokens, expected = self.bench.tokens.get(request_id, []), self.bench.expected(request_id)
            if request_id in self.cancelled | self.failed:
                assert tokens == expected[: len(tokens)]
            else:
                assert tokens == expected
                assert self.bench.finished[request_id] == "length"


def test_no_order_of_events_loses_a_block_a_request_or_a_token(scale: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        SchedulerMachine,
        settings=settings(
            max_examples=60 * scale,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
