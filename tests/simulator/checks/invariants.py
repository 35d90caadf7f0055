"""Invariants of a simulated engine. A check raises AssertionError if one does not hold."""

from dataclasses import dataclass

from engine.engine import Engine
from engine.scheduling.sequence import Sequence, Status
from engine.types import Request, RequestOutput, StepStats
from tests.simulator.faults import Clock, FaultyPool, FaultyRunner
from tests.simulator.record import Record, check_experts, expected, expected_embedding
from tests.simulator.setup import Setup


@dataclass(frozen=True)
class Invariants:
    """Checks of one engine. `open`: the requests that have not ended, by id."""

    setup: Setup
    engine: Engine
    runner: FaultyRunner
    pool: FaultyPool
    clock: Clock
    open: dict[int, Record]

    def check_end(self, record: Record, output: RequestOutput) -> None:
        """Check the outputs of a request that has ended."""
        request, reason = record.request, output.finish_reason
        must_be_rejected = (
            not 0
            < len(request.prompt_token_ids)
            <= self.engine.scheduler.max_model_len - bool(request.params.max_tokens)
        )
        if must_be_rejected:
            assert reason == "error" and not record.token_ids, "a request that can never fit was not rejected"
            return
        tokens, end = expected(self.setup, self.engine.scheduler.max_model_len, request)
        if reason in ("stop", "length"):
            assert (record.token_ids, reason) == (tokens, end), (
                f"request {request.request_id} got {record.token_ids} {reason}, not {tokens} {end}"
            )
            assert record.embedding == expected_embedding(self.setup, request), (
                f"request {request.request_id} got the embedding {record.embedding!r}"
            )
            # With asynchronous scheduling, a request may finish before the step that would make it fail is applied.
            assert self.setup.ahead or not self._must_fail(request), "a fault was ignored"
            check_experts(record)
            return
        assert record.token_ids == tokens[: len(record.token_ids)], f"request {request.request_id} got wrong tokens"
        if reason == "error":
            assert request.request_id in self.runner.may_fail_ids, (
                f"request {request.request_id} failed without a fault: {output.error}"
            )
        elif reason == "queue_timeout":
            assert request.queue_deadline_s is not None and request.queue_deadline_s <= self.clock.now
            assert not record.was_scheduled, "a queue deadline ended a request that had started"
        else:
            assert reason == "timeout" and request.deadline_s is not None and request.deadline_s <= self.clock.now

    def _must_fail(self, request: Request) -> bool:
        return request.request_id in self.runner.raising_ids | self.runner.nan_ids | self.runner.bad_expert_ids

    def check_step(self, start: float, stats: StepStats) -> None:
        """Check the engine after a step that began at `start`."""
        scheduler = self.engine.scheduler
        known = set(scheduler.requests.unfinished) | set(self.engine._grammars._pending)
        rejected = {output.request_id for output in self.engine._rejected}
        assert known | rejected == set(self.open), "a request is lost, or kept after its end"
        assert len(scheduler.requests.running) <= self.setup.max_num_seqs
        assert stats.num_running + stats.num_waiting == len(known)
        assert stats.num_blocks_held == self.pool.num_held <= self.setup.num_blocks
        for pending in self.engine._pipeline.in_flight:
            for chunk in pending.plan.chunks:
                has = len(chunk.sequence.block_table) * self.setup.block_size
                assert has >= chunk.start + chunk.length, "a block is freed while a step computes it"
        for sequence in scheduler.requests.unfinished.values():
            request = sequence.request
            assert request.deadline_s is None or request.deadline_s > start, "a deadline has passed without an effect"
            waits = sequence.first_scheduled_s is None and request.queue_deadline_s is not None
            assert not waits or request.queue_deadline_s > start, "a queue deadline has passed without an effect"
            assert not sequence.block_table or sequence.status is not Status.WAITING, "a waiting request holds blocks"
            self._check_window(sequence)

    def _check_window(self, sequence: Sequence) -> None:
        window, size = self.setup.window, self.setup.block_size
        if window is not None and not sequence.num_chunks_in_flight:
            held = sum(1 for block in sequence.block_table if block)
            assert held <= -(-window // size) + 1 + -(-self.setup.budget // size), (
                "more blocks are held than the window needs"
            )

    def check_idle(self) -> None:
        """Check that nothing of any request is left."""
        self.engine.scheduler.check_integrity()
        assert not self.open, "a request ended without an output"
        assert self.pool.num_held == 0 and super(FaultyPool, self.pool).num_free == self.setup.num_blocks, (
            "blocks are lost"
        )
        left = (
            self.engine.scheduler.requests.unfinished,
            self.engine.scheduler.requests.running,
            self.engine.scheduler.requests._ending,
            self.engine._pipeline.in_flight,
        )
        assert not any(map(len, left)) and not len(self.engine.scheduler.requests.waiting), (
            "something of a request is left"
        )
