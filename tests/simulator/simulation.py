"""The product's Engine, Scheduler and BlockManager over the exact model, checked after every step."""

import hashlib
import random
from collections import defaultdict
from typing import Any

from engine.types import Request, RequestOutput, SamplingParams
from tests.simulator.checks.invariants import Invariants
from tests.simulator.checks.order import OrderCheck
from tests.simulator.checks.share import ShareCheck
from tests.simulator.exact import NAN, POISON, ExactRunner
from tests.simulator.faults import Clock, FakeGrammarQueue, Faults, FaultyPool, FaultyRunner, Point
from tests.simulator.record import ENDS, Record, unended_tokens
from tests.simulator.setup import VOCAB, Setup, build_engine, exact_runner
from tests.support.speculation.guessing_drafter import GuessingDrafter


class Simulation:
    """One engine, its requests, and the invariants. Raises AssertionError if one does not hold."""

    def __init__(self, setup: Setup, rng: random.Random, rates: dict[Point, float], kth: Any = None) -> None:
        self.setup = setup
        self.faults = Faults(rng, rates, kth)
        self.clock = Clock(self.faults)
        self.records: dict[int, Record] = {}
        self.open: dict[int, Record] = {}
        self.ends: dict[str, int] = dict.fromkeys((*ENDS, "cancelled"), 0)
        self.seen: dict[str, int] = defaultdict(int)
        self._num_arrivals = 0
        self._log = hashlib.blake2b(digest_size=8)
        self._exact = exact_runner(setup)
        self.runner = FaultyRunner(self._exact, self.faults, self._corrupt_block, self._maybe_cancel)
        self.runner.on_launch = lambda plan: self.clock.advance(setup.position_s * plan.num_tokens)
        may_fail_ids = self.runner.may_fail_ids
        self._grammars = FakeGrammarQueue(self.faults, may_fail_ids, VOCAB, self._on_queued, self._oracle)
        self.engine = build_engine(setup, self.runner, self.clock, self.faults, self._grammars)
        self.scheduler = self.engine.scheduler
        self.drafter = GuessingDrafter(rng, self._oracle, VOCAB)
        self.scheduler.drafter = self.drafter if setup.drafts else None
        self.shares = ShareCheck(self.scheduler, may_lack_blocks=bool(kth or rates.get("allocate")))
        self.scheduler.plan = self.shares.plan  # type: ignore[method-assign]
        self.scheduler.apply = self.shares.apply  # type: ignore[method-assign]
        pool = self.scheduler.block_manager.pool
        assert isinstance(pool, FaultyPool)
        self.pool = pool
        self._invariants = Invariants(setup, self.engine, self.runner, pool, self.clock, self.open)

    def _oracle(self, request: Request) -> list[int]:
        return unended_tokens(self.setup, self.scheduler.max_model_len, request)

    def _on_queued(self, request_id: int) -> None:
        """Note the arrival: from here on, the request's place in the order counts."""
        self._num_arrivals += 1
        self.records[request_id].arrival = self._num_arrivals

    def _corrupt_block(self, plan: Any) -> set[int]:
        """Turn a position of a computed block into NaN and return the requests that hold the block.

        Not with asynchronous scheduling: there a request may attach the block before the NaN is noticed.
        """
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

    def add(self, prompt: list[int], max_tokens: int = 8, **fields: Any) -> int:
        """Add a request with these fields of Request; `params`: a dict of fields of SamplingParams."""
        request_id = self.setup.first_id + len(self.records)
        params = SamplingParams(max_tokens=max_tokens, **fields.pop("params", {}))
        request = Request(request_id, prompt, params, arrival_s=self.clock.now, **fields)
        self.records[request_id] = self.open[request_id] = Record(request)
        if request.grammar is None:
            self._on_queued(request_id)
        self.engine.add(request)
        self._note("add", request_id, prompt, max_tokens)
        return request_id

    def cancel(self, request_id: int) -> None:
        """Abort a request twice, as a client may do."""
        is_known = request_id in self.scheduler.requests.unfinished or request_id in self.engine._grammars._pending
        self.engine.abort(request_id)
        self.engine.abort(request_id)
        if is_known:
            self._end(request_id, "cancelled")
        self._note("cancel", request_id, is_known)

    def _maybe_cancel(self) -> None:
        if self.records and self.faults.fails("cancel"):
            recent = [
                request_id for request_id in self.records if request_id in self.open or self.faults.rng.random() < 0.1
            ]
            if recent:
                self.cancel(self.faults.rng.choice(recent))

    def step(self) -> None:
        self._maybe_cancel()
        start = self.clock.now
        order_check = OrderCheck(self.scheduler, self.records, self.setup, self.seen["steps"])
        step = self.engine.step()
        order_check.check(self.runner.launched, self.shares.spent)
        for output in step.outputs:
            self._record(output)
        self._note(
            "step", *((c.sequence.request_id, c.start, c.length) for p in self.runner.launched for c in p.chunks)
        )
        for plan in self.runner.launched:
            self.seen["preemptions"] += plan.num_preemptions
            self.seen["prefix hits"] += plan.num_prefix_hits
            assert plan.num_tokens <= self.setup.budget, "more positions than the budget"
        self.seen["accepted drafted tokens"] = self.drafter.num_accepted
        self.seen["prompts cut by a share"] = self.shares.num_cut
        self.seen["window blocks"] += step.stats.num_window_blocks_freed
        self.seen["steps"] += 1
        self.runner.launched = []
        assert len(self.records) == sum(self.ends.values()) + len(self.open)
        self._invariants.check_step(start, step.stats)
        assert not self._grammars.parser_errors, self._grammars.parser_errors
        self._poison()

    def run(self) -> None:
        """Step until nothing is left to do. Raises AssertionError after max_steps() steps."""
        left = self.max_steps()
        while self.engine.has_work():
            assert left, "no progress: requests are left although no fault is injected any more"
            left -= 1
            self.step()
        self._invariants.check_idle()

    def max_steps(self) -> int:
        """Bound: the first request in order gains a position per step, or per two steps with steps in flight."""
        requests = [record.request for record in self.open.values()]
        work = sum(len(request.prompt_token_ids) + request.params.max_tokens for request in requests)
        compilations = sum(int(request.grammar or 0) for request in requests)
        return 2 * work + compilations + 4 * len(requests) + 10

    def heal(self) -> None:
        """Stop injecting faults. Requests that were already made to fail still fail."""
        self.faults.is_on = False

    def _record(self, output: RequestOutput) -> None:
        self._note("output", output.request_id, output.token_ids, output.finish_reason, output.error, output.embedding)
        record = self.open.get(output.request_id)
        assert record is not None, f"request {output.request_id} has an output after its end"
        assert not (output.finish_reason is None and not output.token_ids), "an empty output"
        record.token_ids += output.token_ids
        record.routing += output.expert_routing or []
        record.embedding = output.embedding
        self.seen["embeddings"] += output.embedding is not None
        if output.expert_prompt_tokens is not None:
            assert record.prompt_experts is None, "the experts of a prompt were reported twice"
            record.prompt_experts = output.expert_prompt_tokens
        assert output.num_cached_tokens < len(record.request.prompt_token_ids) + bool(not record.was_scheduled)
        if output.finish_reason is not None:
            assert output.timing is not None
            self._end(output.request_id, output.finish_reason)
            self._invariants.check_end(record, output)

    def _end(self, request_id: int, reason: str) -> None:
        self.open.pop(request_id).end = reason
        self.ends[reason] += 1

    def _poison(self) -> None:
        """Overwrite the blocks that must not be read any more; only with ExactRunner."""
        if isinstance(self._exact, ExactRunner):
            self._exact.poison(self.pool.unused())
            assert self._exact.slots[: self.setup.block_size] == [POISON] * self.setup.block_size, "block 0 was written"

    def _note(self, *what: object) -> None:
        self._log.update(repr(what).encode())

    @property
    def log_hash(self) -> str:
        """Hash of all events, in order."""
        return self._log.hexdigest()
