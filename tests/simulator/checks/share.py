"""Check of what several active tenants take of a step: time for prompts, and tokens that cost more than others. A lone
tenant has no such bound. Tokens are charged once, to the tenant that gets them."""

from collections import Counter
from dataclasses import dataclass, field

from engine.config import max_slots_per_tenant
from engine.scheduling.prompt_share import ACTIVE_S
from engine.scheduling.request_cost import output_cost
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import DraftMasks, Sequence, Status
from engine.scheduling.step_plan import Chunk, StepPlan, StepResult
from engine.scheduling.step_times import StepWork
from engine.types import RequestOutput

ROUNDING = 1e-6
MIN_RUNNING = 4  # requests of a tenant whose costs are not compared with the limit
PLAIN_COST = 2  # of a token of a plain request


@dataclass
class ShareCheck:
    """Wraps plan() and apply() of a scheduler. `may_lack_blocks`: the pool may report fewer free blocks than it has."""

    scheduler: Scheduler
    may_lack_blocks: bool
    spent: set[int] = field(default_factory=set)  # tenants whose share the last step used up
    num_cut: int = 0  # chunks that a share cut
    _active_s: dict[int, float] = field(default_factory=dict)  # when the tenant had a request

    def plan(self, now: float, draft_masks: DraftMasks | None = None) -> StepPlan:
        """Plan a step. Raises AssertionError if it breaks the shares."""
        share_s = self._share_s(now)
        times = self.scheduler.prompt_shares.times
        costs = times.chunk_s, times.position_s(is_scored=False)
        prompts = [sequence for sequence in self.scheduler.requests.running if sequence.num_to_schedule > 1]
        running = set(self.scheduler.requests.running)
        plan = Scheduler.plan(self.scheduler, now, draft_masks)
        chunks: dict[int, list[Chunk]] = {}
        for chunk in plan.chunks:
            if chunk.is_prefill:
                chunks.setdefault(chunk.sequence.tenant, []).append(chunk)
        self.spent = set()
        if share_s is not None:
            lacks_room = self._lacks_room(plan)
            for tenant, of_tenant in chunks.items():
                used_s = self._check_bound(tenant, of_tenant, share_s, *costs)
                is_last_cut = is_cut(of_tenant[-1])
                assert lacks_room or not is_last_cut or used_s + costs[1] > share_s - ROUNDING, (
                    "a prompt got less than its tenant's share"
                )
            self._check_costs(running)
        if not self._lacks_room(plan):
            self._check_progress(prompts, chunks, is_bounded=share_s is not None)
        return plan

    def apply(self, plan: StepPlan, result: StepResult, now: float) -> list[RequestOutput]:
        """Apply a step. Raises AssertionError if a tenant is charged for other tokens than those of its outputs."""
        served, sequences = self.scheduler.fair_share.served, {c.sequence.request_id: c.sequence for c in plan.chunks}
        before = {sequence.tenant: served(sequence.tenant) for sequence in sequences.values()}
        outputs = Scheduler.apply(self.scheduler, plan, result, now)
        costs: Counter[int] = Counter()
        for output in outputs:
            sequence = sequences[output.request_id]
            costs[sequence.tenant] += output_cost(sequence.request) * len(output.token_ids)
        for tenant, served_before in before.items():
            assert served(tenant) - served_before == costs[tenant], "a tenant is charged for other tokens than it got"
        return outputs

    def _share_s(self, now: float) -> float | None:
        """Return the seconds of each tenant's share, or None if fewer than two tenants are active."""
        scheduler = self.scheduler
        self._active_s |= {sequence.tenant: now for sequence in scheduler.requests.unfinished.values()}
        num_active = sum(active_s >= now - ACTIVE_S for active_s in self._active_s.values())
        if num_active < 2:
            return None
        num_decoding = sum(sequence.num_to_schedule == 1 for sequence in scheduler.requests.running)
        decoding_s = scheduler.prompt_shares.times.predict(StepWork(num_decoding, num_decoding, 0))
        return max(scheduler.prompt_shares.prompt_s, decoding_s) / num_active

    def _check_bound(self, tenant: int, chunks: list[Chunk], share_s: float, chunk_s: float, position_s: float) -> None:
        """Check a tenant's chunks. The first may have `min_positions`, and a single position is never held back."""
        used_s = 0.0
        for number, chunk in enumerate(chunks):
            used_s += chunk_s + chunk.length * position_s
            is_least = number == 0 and chunk.length <= self.scheduler.prompt_shares.min_positions
            assert chunk.length == 1 or is_least or used_s <= share_s + ROUNDING, "a prompt exceeds its tenant's share"
        if used_s + chunk_s + position_s > share_s - ROUNDING:
            self.spent.add(tenant)
            self.num_cut += is_cut(chunks[-1])
        return used_s

    def _check_costs(self, running_before: set[Sequence]) -> None:
        """Check the costs of the tenants that had a request started, and note those whose next request must wait."""
        limit = PLAIN_COST * max_slots_per_tenant(self.scheduler.max_running)
        running = self.scheduler.requests.running
        costs: Counter[int] = Counter()
        for sequence in running:
            costs[sequence.tenant] += output_cost(sequence.request)
        numbers = Counter(sequence.tenant for sequence in running)
        for tenant in {sequence.tenant for sequence in running if sequence not in running_before}:
            assert numbers[tenant] <= MIN_RUNNING or costs[tenant] <= limit, (
                "a tenant's tokens cost more than its slots"
            )
        for sequence in self.scheduler.requests.unfinished.values():
            tenant, cost = sequence.tenant, output_cost(sequence.request)
            if sequence.status is Status.WAITING and numbers[tenant] >= MIN_RUNNING and costs[tenant] + cost > limit:
                self.spent.add(tenant)

    def _lacks_room(self, plan: StepPlan) -> bool:
        """Return whether a chunk may have been cut or left out for other reasons than a share."""
        pool = self.scheduler.block_manager.pool
        is_full = plan.num_tokens == self.scheduler.max_num_batched_tokens
        return self.may_lack_blocks or is_full or bool(plan.num_preemptions) or pool.num_held == pool.num_blocks

    def _check_progress(self, prompts: list[Sequence], chunks: dict[int, list[Chunk]], *, is_bounded: bool) -> None:
        for sequence in prompts:
            assert sequence.tenant in chunks, "a tenant's prompts got nothing of the step"
        if not is_bounded:
            assert not any(is_cut(chunk) for of_tenant in chunks.values() for chunk in of_tenant), (
                "the prompt of a lone tenant was cut"
            )


def is_cut(chunk: Chunk) -> bool:
    """Return whether more of the sequence's known tokens are to be computed after the chunk."""
    return chunk.start + chunk.length < len(chunk.sequence.token_ids)
