"""Decides what each step computes, and what its results mean. No I/O, no torch, no clock, no randomness.

There is no prefill phase and no decode phase: a step is a map from requests to how many of their positions to compute
now, under a budget of tokens. Decoding requests take one; prompts take chunks of what is left; a preempted request is
a prompt again, a prefix hit a prompt that starts later.
"""

import logging
from bisect import bisect_left, insort
from collections.abc import Iterable

from engine.config import share_of_places
from engine.errors import RequestRejectedError
from engine.scheduling.block_manager import BlockManager
from engine.scheduling.deadlines import Deadlines
from engine.scheduling.expert_usage import ExpertUsage
from engine.scheduling.fairness import FairShare
from engine.scheduling.request_outputs import error_output, final_output, finish_reason, progress_output
from engine.scheduling.sequence import Matcher, Sequence, Status
from engine.scheduling.step_plan import Chunk, RowFailed, Sampled, StepPlan, StepResult
from engine.scheduling.step_plan_builder import StepPlanBuilder
from engine.scheduling.waiting_queue import WaitingQueue
from engine.types import Request, RequestOutput

NOT_TAKEN = "the engine failed on what it computed for this request"

log = logging.getLogger("smoe.engine")


class Scheduler:
    """plan() -> StepPlan, apply(plan, result) -> outputs. plan() may be called once more before apply(), with one step
    in flight; requests are added and aborted between calls.

    Who waits is let in by priority, then tenant by tenant (engine.waiting), or by arrival alone; from then on the order
    of service is (priority, turn). The first in that order can never be preempted by a later one, and only the last is
    ever a victim: so the first always finishes, and then the next is first.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        eos_token_ids: Iterable[int],
        by_priority: bool = True,
        num_experts: int = 0,
        num_tenants: int = 1,
    ) -> None:
        """`num_tenants`: with more than one, none may have all places, so that another's first request finds one."""
        self.block_manager = block_manager
        self.max_running = min(max_num_seqs, max_num_batched_tokens)  # so that every running request gets its token
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.eos_token_ids = frozenset(eos_token_ids)
        self.by_priority = by_priority
        self.num_experts = num_experts
        self.tenants = FairShare(share_of_places(self.max_running) if num_tenants > 1 else self.max_running)
        self.waiting = WaitingQueue(self.tenants)
        self.running: list[Sequence] = []  # in scheduling order
        self.unfinished: dict[int, Sequence] = {}
        self._ending: dict[int, Sequence] = {}  # finished with a chunk in flight: blocks still to be given back
        self._deadlines = Deadlines()
        self._num_arrivals = 0

    # Requests come and go.

    def add(self, request: Request, matcher: Matcher | None = None) -> None:
        """Queues a request, and its grammar's matcher. Raises RequestRejectedError for one that could never run."""
        self._check_fits(request)
        order = (request.priority if self.by_priority else 0, self._num_arrivals)
        self._num_arrivals += 1
        room = self.max_model_len - len(request.prompt_token_ids)
        sequence = Sequence(request, order, min(request.params.max_tokens, room), matcher)
        sequence.tenant = request.tenant if self.by_priority else 0
        if request.expert_usage or request.expert_routing:
            sequence.experts = ExpertUsage(request, self.num_experts)
        self.unfinished[request.request_id] = sequence
        self._deadlines.add(request, self.unfinished)
        self.waiting.push(sequence)

    def _check_fits(self, request: Request) -> None:
        length = len(request.prompt_token_ids)
        generates = request.params.max_tokens > 0
        limit = self.max_model_len - generates
        if not 0 < length <= limit:
            raise RequestRejectedError(f"the prompt has {length} tokens; this server takes 1 to {limit}")

    def abort(self, request_id: int) -> bool:
        """Ends a request without an output; False if it is not there (any more)."""
        sequence = self.unfinished.get(request_id)
        if sequence is None:
            return False
        self._end(sequence)
        return True

    def expire(self, now: float) -> list[RequestOutput]:
        """Ends the requests whose time is over; call it before `plan`. A deadline of the queue only concerns what was
        never scheduled: what a preemption sent back has begun."""
        outputs = []
        for request_id, expiry in self._deadlines.passed(now):
            sequence = self.unfinished.get(request_id)
            if sequence is not None and (expiry == "timeout" or sequence.first_scheduled_s is None):
                self._end(sequence)
                outputs.append(final_output(sequence, expiry, now))
        return outputs

    def has_work(self) -> bool:
        return bool(self.running or len(self.waiting))

    def check_integrity(self) -> None:
        """Raises AssertionError if a block is lost or counted wrongly. For tests, and for idle moments."""
        holders = [*self.unfinished.values(), *self._ending.values()]
        self.block_manager.pool.check_integrity(sequence.block_table for sequence in holders)
        assert len(self.running) + len(self.waiting) == len(self.unfinished), (
            "a live request is neither running nor waiting"
        )

    # A step is planned.

    def plan(self, now: float) -> StepPlan:
        """What to compute next; empty if nothing can be. Allocates blocks, may preempt, moves requests to running."""
        step = StepPlanBuilder(self.max_num_batched_tokens)
        decoding, others = self._split_decode_prefill()
        for sequence in decoding:  # there are never more of them than budget: max_running
            if sequence.status is Status.RUNNING:  # not preempted for one before it
                self._schedule(step, sequence, 1)
        for sequence in others:
            if step.budget > 0 and sequence.status is Status.RUNNING:
                self._schedule(step, sequence, sequence.num_to_schedule)
        if not step.num_preemptions:
            self._admit(step, now)
        return step.finish(self.block_manager.take_blocks_to_zero() if step.chunks else ())

    def _split_decode_prefill(self) -> tuple[list[Sequence], list[Sequence]]:
        """Those that need one position, and those that need more, each in order."""
        decoding, others = [], []
        for sequence in self.running:
            count = sequence.num_to_schedule
            if count == 1:
                decoding.append(sequence)
            elif count:
                others.append(sequence)
        return decoding, others

    def _schedule(self, step: StepPlanBuilder, sequence: Sequence, needed: int) -> None:
        """Gives the sequence a chunk of the positions that it needs, as many as the budget, which is not used up, lets
        it have; preempts from the end of the order until some of it fits."""
        wanted = min(needed, step.budget)
        while not (length := self.block_manager.allocate_for(sequence, wanted)):
            victim = self._pick_victim()
            if victim is None or victim.order < sequence.order:
                step.num_blocked += 1  # everyone behind it is in flight: it waits for the next step
                return
            self._preempt(victim)
            step.preempted(victim)
            if victim is sequence:
                return
        step.add(sequence, length, reaches_end=length == needed)

    def _pick_victim(self) -> Sequence | None:
        """The last in scheduling order whose blocks no step in flight is using."""
        return next((s for s in reversed(self.running) if not s.num_chunks_in_flight), None)

    def _preempt(self, victim: Sequence) -> None:
        self.block_manager.free(victim)
        self._leave_running(victim)
        victim.restart()
        self.waiting.push(victim)

    def _admit(self, step: StepPlanBuilder, now: float) -> None:
        """Lets waiting requests in, in order, while there is budget and their tokens fit; the first that does not fit
        holds the others back, so that a long prompt is never overtaken for ever."""
        while step.budget > 0 and len(self.running) < self.max_running:
            sequence = self.waiting.peek()
            if sequence is None:
                return
            hits = self.block_manager.find_prefix(sequence)
            if not self.block_manager.can_admit(sequence, hits):
                return
            self.waiting.pop()
            self._start(step, sequence, hits, now)

    def _start(self, step: StepPlanBuilder, sequence: Sequence, hits: list[int], now: float) -> None:
        self.block_manager.attach_prefix(sequence, hits)
        sequence.status = Status.RUNNING
        insort(self.running, sequence, key=lambda s: s.order)
        self.tenants.on_started(sequence.tenant)
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = now
            sequence.num_cached_tokens = sequence.num_computed
            step.num_prefix_hits += sequence.num_computed
            step.num_prefix_queries += sequence.num_prompt_tokens if sequence.reads_prefix_cache else 0
            num_new = sequence.num_prompt_tokens - sequence.num_cached_tokens
            self.tenants.charge_prompt(sequence.tenant, num_new)
        self._schedule(step, sequence, sequence.num_to_schedule)

    # Its results are applied.

    def apply(self, plan: StepPlan, result: StepResult, now: float) -> list[RequestOutput]:
        """Commits what the step computed and returns what its requests are to be told. Plans land in order, once."""
        outputs = []
        for chunk in plan.chunks:
            output = self._apply_chunk(chunk, result, now)
            if output is not None:
                outputs.append(output)
        return outputs

    def _apply_chunk(self, chunk: Chunk, result: StepResult, now: float) -> RequestOutput | None:
        sequence = chunk.sequence
        sequence.num_chunks_in_flight -= 1
        if chunk.samples:
            sequence.num_pending_tokens -= 1
        outcome = result.sampled.get(sequence.request_id)
        if sequence.status is Status.FINISHED:
            if isinstance(outcome, RowFailed):
                self.block_manager.invalidate(sequence)
            self._free_if_idle(sequence)
            return None
        if isinstance(outcome, RowFailed):
            return self._fail(sequence, outcome.message, now)
        try:
            return self._commit_chunk(chunk, outcome, result, now)
        except AssertionError:
            raise  # the book-keeping is wrong, which is nobody's own fault
        except Exception:
            log.exception("what a step gave request %d could not be taken; it ends with an error", sequence.request_id)
            return self._fail(sequence, NOT_TAKEN, now)

    def _commit_chunk(
        self, chunk: Chunk, outcome: Sampled | None, result: StepResult, now: float
    ) -> RequestOutput | None:
        sequence = chunk.sequence
        if sequence.experts and sequence.request_id in result.expert_choices:
            sequence.experts.add(chunk.start, result.expert_choices[sequence.request_id])
        sequence.num_computed += chunk.length
        self.block_manager.commit(sequence)
        if result.prompt_logprobs:
            sequence.prompt_logprobs += result.prompt_logprobs.get(sequence.request_id, [])
        if outcome is not None:
            return self._append(sequence, outcome, now)
        if not sequence.request.params.max_tokens and sequence.num_computed == sequence.num_prompt_tokens:
            self._end(sequence)
            return final_output(sequence, "length", now)
        return None

    def _append(self, sequence: Sequence, sampled: Sampled, now: float) -> RequestOutput:
        sequence.token_ids.append(sampled.token_id)
        self.tenants.charge_output(sequence.tenant)
        if sequence.first_token_s is None:
            sequence.first_token_s = now
        reason, stop_token_id = finish_reason(sequence, sampled.token_id, self.eos_token_ids)
        if reason is not None:
            self._end(sequence)
            return final_output(sequence, reason, now, sampled=sampled, stop_token_id=stop_token_id)
        return progress_output(sequence, sampled)

    def _fail(self, sequence: Sequence, message: str, now: float) -> RequestOutput:
        """Ends one whose own data is at fault, if it has not ended yet: nobody finds what it computed."""
        self.block_manager.invalidate(sequence)
        if sequence.status is not Status.FINISHED:
            self._end(sequence)
        return error_output(sequence, message, now)

    # Sequences end.

    def _end(self, sequence: Sequence) -> None:
        """Out of every list; the blocks at once, or when the chunk in flight has landed."""
        del self.unfinished[sequence.request_id]
        was_waiting = sequence.status is Status.WAITING
        sequence.status = Status.FINISHED
        if was_waiting:
            self.waiting.forget(sequence)
        else:
            self._leave_running(sequence)
        self._ending[sequence.request_id] = sequence
        self._free_if_idle(sequence)

    def _free_if_idle(self, sequence: Sequence) -> None:
        if not sequence.num_chunks_in_flight:
            self.block_manager.free(self._ending.pop(sequence.request_id))

    def _leave_running(self, sequence: Sequence) -> None:
        index = bisect_left(self.running, sequence.order, key=lambda s: s.order)
        assert self.running[index] is sequence
        del self.running[index]
        self.waiting.stopped(sequence)
