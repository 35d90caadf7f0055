"""Bugs in blocks, in the prefix cache and in the scheduling order."""

from tests.simulator.bugs.edits import Edit, Mutation, bug

CACHED_EARLY = """step.add(sequence, length, reaches_end=length == needed)
        if self.block_manager.prefix_caching and not sequence.num_pending_tokens:
            sequence.num_computed += length
            self.block_manager._cache_full_blocks(sequence)
            sequence.num_computed -= length"""

SCHEDULING_BUGS = [
    # Blocks
    bug(
        "a block is not freed on cancel",
        "scheduling.scheduler:Scheduler.abort",
        "self.requests.end(sequence)",
        "sequence.block_table = []; self.requests.end(sequence)",
    ),
    bug(
        "a block is freed twice",
        "scheduling.scheduler:Scheduler.abort",
        "self.requests.end(sequence)",
        "table = list(sequence.block_table); self.requests.end(sequence); self.block_manager.pool.decref(table)",
    ),
    bug(
        "blocks are freed while a step computes them",
        "scheduling.active_requests:ActiveRequests.free_if_idle",
        "if not sequence.num_chunks_in_flight:",
        "if sequence.request_id in self._ending:",
    ),
    bug(
        "a block of the window is freed one early",
        "scheduling.blocks.manager:BlockManager._evict_outside_window",
        "self.geometry.first_visible_block(sequence.num_computed), sequence",
        "self.geometry.first_visible_block(sequence.num_computed + self._block_size), sequence",
    ),
    bug(
        "the window is off by one",
        "scheduling.blocks.geometry:BlockGeometry.first_visible_block",
        "position - self.window + 1",
        "position - self.window + 2",
    ),
    bug(
        "blocks left of the window are never freed",
        "scheduling.blocks.manager:BlockManager.commit",
        "if self.geometry.window is not None:",
        "if False:",
    ),
    bug(
        "a preempted request's blocks are not freed",
        "scheduling.active_requests:ActiveRequests.preempt",
        "self._block_manager.free(victim)",
        "victim.block_table = []",
    ),
    bug(
        "a hit block stays in the free list",
        "scheduling.blocks.pool:BlockPool.incref",
        "del self._free[block_id]",
        "pass",
    ),
    bug(
        "a shared block is freed by its first holder",
        "scheduling.blocks.pool:BlockPool.decref",
        "self._references[block_id] -= 1",
        "self._references[block_id] = 0",
    ),
    # The prefix cache
    bug(
        "a block is found before it is computed",
        "scheduling.scheduler:Scheduler._schedule",
        "step.add(sequence, length, reaches_end=length == needed)",
        CACHED_EARLY,
    ),
    bug(
        "a reused block is still found",
        "scheduling.blocks.pool:BlockPool._take_oldest",
        "if block_hash is not None:",
        "if False:",
    ),
    bug(
        "tokens are not compared on a hit",
        "scheduling.blocks.pool:BlockPool.lookup",
        " and cached.token_ids == token_ids",
        "",
    ),
    bug("a prefix is shared across salts", "scheduling.sequence:Sequence._root_hash", "request.cache_salt", '""'),
    bug("a prefix is shared across tenants", "scheduling.sequence:Sequence._root_hash", "self.cache_tenant", "None"),
    bug(
        "a prefix is shared across numbers of experts",
        "scheduling.sequence:Sequence._root_hash",
        "request.experts_per_token",
        "None",
    ),
    bug(
        "a prefix is shared across expert masks",
        "scheduling.sequence:Sequence._root_hash",
        "request.expert_mask",
        "None",
    ),
    bug(
        "a later block takes an earlier one's hash",
        "scheduling.blocks.pool:BlockPool.cache_block",
        "block_hash not in self._index and ",
        "",
    ),
    bug(
        "a hit reaches behind the window's blocks",
        "scheduling.blocks.manager:BlockManager._longest_visible",
        "self.geometry.first_visible_block(count * self._block_size)",
        "count - 1",
    ),
    # The scheduling order
    bug(
        "the first in order is preempted",
        "scheduling.active_requests:ActiveRequests.pick_victim",
        "reversed(self.running)",
        "self.running",
    ),
    bug(
        "a request is preempted while a step computes it",
        "scheduling.active_requests:ActiveRequests.pick_victim",
        "if not s.num_chunks_in_flight",
        "if s",
    ),
    bug("priority is inverted", "scheduling.scheduler:Scheduler.add", "(request.priority if", "(-request.priority if"),
    bug(
        "a priority counts among all tenants",
        "scheduling.waiting_queue:WaitingQueue._turn",
        "return True, self.fair_share.served(head.tenant), head",
        "return True, head.order[0], head",
    ),
    bug(
        "a tenant's shares are ignored",
        "scheduling.waiting_queue:WaitingQueue._turn",
        "self.fair_share.served(head.tenant)",
        "0",
    ),
    bug(
        "a preempted request waits for its tenant's share",
        "scheduling.waiting_queue:WaitingQueue._turn",
        "if head.num_preemptions:",
        "if False:",
    ),
    bug(
        "an urgent request is placed before other tenants' requests",
        "scheduling.active_requests:ActiveRequests._give_place",
        "sequence.place = self._next_place()",
        "sequence.place = sequence.order[0] * 10**6 + self._next_place()",
    ),
    bug(
        "an urgent request is placed behind its tenant's others",
        "scheduling.active_requests:ActiveRequests._give_place",
        "if behind and",
        "if False and",
    ),
    bug(
        "a preempted request is placed before its tenant's urgent ones",
        "scheduling.active_requests:ActiveRequests._give_place",
        " or (before and before[-1].place > sequence.place)",
        "",
    ),
    bug(
        "a preempted request never waits again",
        "scheduling.active_requests:ActiveRequests.preempt",
        "self.waiting.push(victim)",
        "pass",
    ),
    bug(
        "no step runs while requests only wait",
        "scheduling.scheduler:Scheduler.has_work",
        "self.requests.running or len(self.requests.waiting)",
        "self.requests.running",
    ),
    bug(
        "the budget is not counted down",
        "scheduling.step_plan_builder:StepPlanBuilder.add",
        "self.budget -= length",
        "pass",
    ),
    Mutation(
        "one request too many runs",
        (
            Edit(
                "scheduling.scheduler:Scheduler._admit",
                "len(requests.running) < self.max_running",
                "len(requests.running) <= self.max_running",
            ),
            Edit("scheduling.fairness:FairShare.at_limit", ">= self._max", "> self._max"),
        ),
    ),
    bug(
        "a preempted request's chunk stays in the plan",
        "scheduling.step_plan_builder:StepPlanBuilder.remove_preempted",
        "self.chunks.pop(victim.request_id, None)",
        "self.chunks.get(victim.request_id)",
    ),
    Mutation(
        "a resumed request keeps its computed count",
        (
            Edit(
                "scheduling.sequence:Sequence.restart",
                "self.num_computed = self.num_scheduled = self.num_evicted_blocks",
                "self.num_evicted_blocks",
            ),
            Edit(
                "scheduling.blocks.manager:BlockManager.attach_prefix",
                "len(hits) * self._block_size",
                "max(sequence.num_computed, len(hits) * self._block_size)",
            ),
        ),
    ),
    # Shares of a step's time
    bug(
        "the time of a tenant's prompts is not counted",
        "scheduling.prompt_share:PromptShare.use",
        "+= self._times.chunk_s + length * position_s",
        "= 0.0",
    ),
    bug(
        "the chunk that a share leaves may be empty",
        "scheduling.prompt_share:PromptShare.max_positions",
        "max(self._min_positions, length)",
        "length",
    ),
    bug(
        "one tenant's prompts use up the share of all",
        "scheduling.prompt_share:PromptShare.max_positions",
        "self._used_s.get(sequence.tenant, 0.0)",
        "sum(self._used_s.values())",
    ),
    bug(
        "a share is as large as that of all tenants",
        "scheduling.prompt_share:PromptShares.open",
        " / num_active",
        "",
    ),
    bug(
        "a lone tenant's prompts are bounded",
        "scheduling.prompt_share:PromptShares.open",
        "num_active < 2",
        "num_active < 1",
    ),
    bug(
        "a tenant that has ended its request is active forever",
        "scheduling.prompt_share:PromptShares.open",
        "now - active_s <= ACTIVE_S",
        "now >= active_s",
    ),
    bug(
        "a tenant that only waits is not active",
        "scheduling.fairness:FairShare.present",
        "chain(self._num_waiting.items(), self._num_running.items())",
        "self._num_running.items()",
    ),
    bug(
        "running prompts pass the share",
        "scheduling.scheduler:Scheduler._schedule",
        "step.prompt_share.max_positions(sequence)",
        "needed",
    ),
]
