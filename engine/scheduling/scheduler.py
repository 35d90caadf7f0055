"""Decide what each step computes. No I/O, no torch, no clock, no randomness.

There is no prefill phase and no decode phase: a step maps requests to the number of their positions that it computes,
under a budget of tokens. A decoding request takes one position. Prompts take chunks of the rest of the budget. A
preempted request is a prompt again; a prefix hit is a prompt that starts later.
"""

from collections.abc import Iterable
from functools import partial

from engine.config import max_slots_per_tenant
from engine.errors import RequestRejectedError
from engine.scheduling.active_requests import ActiveRequests
from engine.scheduling.blocks.manager import BlockManager
from engine.scheduling.expert_usage import ExpertUsage
from engine.scheduling.fairness import FairShare
from engine.scheduling.prompt_share import PromptShare, PromptShares
from engine.scheduling.request_cost import prompt_cost
from engine.scheduling.request_outputs import final_output
from engine.scheduling.sequence import DraftMasks, Matcher, Sequence, Status
from engine.scheduling.step_commit import StepCommitter
from engine.scheduling.step_plan import StepPlan, StepResult
from engine.scheduling.step_plan_builder import StepPlanBuilder
from engine.speculation.speculator import Candidate, Drafter, StepTime
from engine.types import Request, RequestOutput


class Scheduler:
    """Planner of steps: plan() -> StepPlan, apply(plan, result) -> outputs.

    With one step in flight, plan() may be called once more before apply(). Requests are added and aborted between
    calls.

    Waiting requests are admitted tenant by tenant, those of a tenant by priority (WaitingQueue), or by arrival alone.
    From then on each has a place in the scheduling order, by turn of admission; the requests of one tenant are in the
    order of (priority, arrival), and a more urgent one moves only its own tenant's others back. A request is never
    preempted for one behind it in this order, and only the last request is preempted. So the first request always
    finishes, and the next one becomes the first.
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
        share_prefix_cache: bool = False,
        drafter: Drafter | None = None,
    ) -> None:
        """`num_tenants`: with more than one, no tenant may take all running slots, so that the first request of another
        tenant finds one free (unless all run in order of arrival), no tenant finds another's blocks in the prefix
        cache, and prompts take a bounded time of a step while several tenants are active
        (engine/scheduling/prompt_share.py).
        `by_priority`: if False, requests run in order of arrival, whatever their priority and tenant.
        `share_prefix_cache`: if True, tenants find each other's blocks.
        `drafter`: chooses drafts for requests that decode; None: no request drafts.
        """
        self.block_manager = block_manager
        self.max_running = min(max_num_seqs, max_num_batched_tokens)  # so that every running request gets its token
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.by_priority = by_priority
        self.num_experts = num_experts
        self.has_cache_per_tenant = num_tenants > 1 and not share_prefix_cache
        has_shares = by_priority and num_tenants > 1
        self.fair_share = FairShare(max_slots_per_tenant(self.max_running) if has_shares else self.max_running)
        self.prompt_shares = PromptShares(num_tenants)
        self.drafter = drafter
        self._eos_token_ids = frozenset(eos_token_ids)
        self.requests = ActiveRequests(block_manager, self.fair_share)
        self._committer = StepCommitter(self.requests, block_manager, self.fair_share)
        self._num_arrivals = 0

    def add(self, request: Request, matcher: Matcher | None = None) -> None:
        """Queue a request, with the matcher of its grammar. Raises RequestRejectedError if it could never run."""
        _check_length(request, self.max_model_len)
        order = (request.priority if self.by_priority else 0, self._num_arrivals)
        self._num_arrivals += 1
        max_new_tokens = self.max_model_len - len(request.prompt_token_ids)
        max_generated = min(request.params.max_tokens, max_new_tokens)
        sequence = Sequence(request, order, max_generated, matcher, self._eos_token_ids)
        sequence.tenant = request.tenant if self.by_priority else 0
        sequence.cache_tenant = request.tenant if self.has_cache_per_tenant else None
        if request.expert_usage or request.expert_routing:
            sequence.experts = ExpertUsage(request, self.num_experts)
        if self.drafter is not None and sequence.max_generated > 1 and not request.gate_logits:
            sequence.drafts = self.drafter.source(request, sequence.end_token_ids)
        self.requests.add(sequence)

    def abort(self, request_id: int) -> bool:
        """End a request without an output. Return False if it is unknown or has ended."""
        sequence = self.requests.unfinished.get(request_id)
        if sequence is None:
            return False
        self.requests.end(sequence)
        return True

    def expire(self, now: float) -> list[RequestOutput]:
        """End the requests whose deadline has passed and return their outputs. Call it before plan()."""
        outputs = []
        for sequence, expiry in self.requests.pop_expired(now):
            self.requests.end(sequence)
            outputs.append(final_output(sequence, expiry, now))
        return outputs

    def has_work(self) -> bool:
        return bool(self.requests.running or len(self.requests.waiting))

    def check_integrity(self) -> None:
        """Raise AssertionError if a block is lost or counted wrongly. For tests, and for idle moments."""
        self.block_manager.pool.check_integrity(self.requests.block_tables())
        self.requests.check_integrity()

    def plan(self, now: float, draft_masks: DraftMasks | None = None) -> StepPlan:
        """Return the next step's work; empty if nothing can run. Allocates blocks, admits and may preempt requests.

        `draft_masks`: None: requests with a grammar draft nothing."""
        decoding, prefilling = self._split_decode_prefill()
        share = self.prompt_shares.open(now, self.fair_share, len(decoding))
        step = StepPlanBuilder(self.max_num_batched_tokens, share)
        for sequence in decoding:  # at most max_running, so the budget suffices
            if sequence.status is Status.RUNNING:  # not preempted for a sequence before it
                if sequence.num_generated and self.block_manager.has_room(sequence):
                    step.add_next(sequence)
                else:
                    self._schedule(step, sequence, 1)
        for sequence in prefilling:
            if step.budget > 0 and sequence.status is Status.RUNNING and share.has_room(sequence):
                self._schedule(step, sequence, sequence.num_to_schedule)
        if not step.num_preemptions:
            self._admit(step, now)
        drafter = self.drafter
        if drafter is not None and step.chunks and not step.has_prefill and drafter.may_draft(len(step.chunks)):
            self._add_drafts(step, drafter, draft_masks)
        return step.build(self.block_manager.take_blocks_to_zero() if step.chunks else (), now)

    def _split_decode_prefill(self) -> tuple[list[Sequence], list[Sequence]]:
        """Return the sequences that need one position, and those that need more, each in scheduling order."""
        decoding, prefilling = [], []
        for sequence in self.requests.running:
            count = sequence.num_to_schedule
            if count == 1:
                decoding.append(sequence)
            elif count:
                prefilling.append(sequence)
        return decoding, prefilling

    def _schedule(self, step: StepPlanBuilder, sequence: Sequence, needed: int) -> None:
        """Add a chunk of at most `needed` positions to the plan, as many as the rest of the budget and of the tenant's
        share of the prompts' time allow.

        Neither must be used up. While no position has a block, preempts from the end of the scheduling order.
        """
        max_length = 1
        if needed > 1:
            max_length = min(needed, step.budget, step.prompt_share.max_positions(sequence))
        while not (length := self.block_manager.allocate_for(sequence, max_length)):
            victim = self.requests.pick_victim()
            if victim is None or victim.place < sequence.place:
                step.num_blocked += 1  # all sequences behind this one are in flight: it waits for the next step
                return
            self.requests.preempt(victim)
            step.remove_preempted(victim)
            if victim is sequence:
                return
        step.add(sequence, length, reaches_end=length == needed)

    def _admit(self, step: StepPlanBuilder, now: float) -> None:
        """Admit waiting requests, in order, while there is budget and their tokens fit. While several tenants are
        active, one waits whose prompts have used up their time of the step, or whose running requests cost too much.

        The first that does not fit blocks the others, so that a long prompt is not overtaken forever.
        """
        requests = self.requests
        may_start = partial(self._may_start, step.prompt_share)
        while step.budget > 0 and len(requests.running) < self.max_running:
            sequence = requests.waiting.peek(may_start)
            if sequence is None:
                return
            hits = self.block_manager.find_prefix(sequence)
            if not self.block_manager.can_admit(sequence, hits):
                return
            requests.waiting.pop(may_start)
            self._start(step, sequence, hits, now)

    def _may_start(self, share: PromptShare, sequence: Sequence) -> bool:
        """Return whether the shares of several active tenants let a waiting request start in this step."""
        if not share.has_room(sequence):
            return False
        return not (share.is_bounded and self.fair_share.costs_too_much(sequence.tenant, sequence.output_cost))

    def _start(self, step: StepPlanBuilder, sequence: Sequence, hits: list[int], now: float) -> None:
        self.block_manager.attach_prefix(sequence, hits)
        self.requests.start(sequence)
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = now
            sequence.num_cached_tokens = sequence.num_computed
            step.num_prefix_hits += sequence.num_computed
            step.num_prefix_queries += sequence.num_prompt_tokens if sequence.reads_prefix_cache else 0
            num_new = sequence.num_prompt_tokens - sequence.num_cached_tokens
            self.fair_share.charge(sequence.tenant, prompt_cost(sequence.request, num_new))
        self._schedule(step, sequence, sequence.num_to_schedule)

    def _add_drafts(self, step: StepPlanBuilder, drafter: Drafter, masks: DraftMasks | None) -> None:
        """Add drafts to requests that decode, within the budget and the blocks that no running request needs next."""
        found = [(chunk.sequence, self._candidate(chunk.sequence, masks)) for chunk in step.chunks.values()]
        sequences = [sequence for sequence, candidate in found if candidate]
        candidates = [candidate for _, candidate in found if candidate]
        drafts = drafter.choose(candidates, len(step.chunks), step.budget, is_shared=step.prompt_share.is_bounded)
        for sequence, draft in zip(sequences, drafts, strict=True):
            if draft and sequence.matcher is not None and masks is not None:
                draft = draft[: masks.prepare_draft(sequence, draft)]
            if draft:
                num_running = len(self.requests.running)
                length = self.block_manager.allocate_draft(sequence, len(draft), num_running)
                step.add_draft(sequence, draft[:length])

    @staticmethod
    def _candidate(sequence: Sequence, masks: DraftMasks | None) -> Candidate | None:
        """Return the sequence for the drafter; None if it drafts nothing. A draft waits for the token in flight, if
        there is one."""
        if sequence.drafts is None or sequence.num_pending_tokens:
            return None
        grammar = None
        if sequence.matcher is not None:
            grammar = None if masks is None else masks.guide(sequence)
            if grammar is None:
                return None
        max_len = sequence.max_generated - sequence.num_generated - 1
        return Candidate(sequence.drafts, sequence.token_ids, max_len, grammar)

    def apply(self, plan: StepPlan, result: StepResult, now: float) -> list[RequestOutput]:
        """Apply a step's results and return the outputs of its requests. Each plan is applied once, in order."""
        self.prompt_shares.record(plan.work, plan.planned_s, now)
        drafter = self.drafter
        if drafter is not None and drafter.is_measuring and plan.chunks and not plan.num_prefill_tokens:
            num_accepted = sum(map(len, result.behind_drafts.values()))
            step = StepTime(len(plan.chunks), plan.num_tokens, num_accepted, max(0.0, now - plan.planned_s))
            drafter.record(step)
        return self._committer.apply(plan, result, now)


def _check_length(request: Request, max_model_len: int) -> None:
    length = len(request.prompt_token_ids)
    generates = request.params.max_tokens > 0
    limit = max_model_len - generates
    if not 0 < length <= limit:
        raise RequestRejectedError(f"the prompt has {length} tokens; this server takes 1 to {limit}")
