"""Hand-made bugs: small changes of the product's source that tests.simulator.mutations applies."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """Replacement of source text. `where`: module:function or module:Class.method, without `engine.`."""

    where: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """One bug: its name, and the edits that make it."""

    name: str
    edits: tuple[Edit, ...]


def _bug(name: str, where: str, old: str, new: str) -> Mutation:
    return Mutation(name, (Edit(where, old, new),))


FOUND_LATE = {  # bugs that need more than 100 seeds: the first seed that finds each, tried first
    "an urgent request is placed before other tenants' requests": 481,
    "an urgent request is placed behind its tenant's others": 210,
    "a preempted request is placed before its tenant's urgent ones": 124,
    "a preempted request's chunk stays in the plan": 276,
    "a prompt's experts are reported twice": 521,
    "a row that fails after its cancel is ignored": 138,
    "blocks are zeroed again when results are fetched": 670,
    "a prompt's positions are not checked for NaN": 352,
    "half a chunk samples": 298,
    "a row is reused while a step uses it": 504,
}

CACHED_EARLY = """step.add(sequence, length, reaches_end=length == needed)
        if self.block_manager.prefix_caching and not sequence.num_pending_tokens:
            sequence.num_computed += length
            self.block_manager._cache_full_blocks(sequence)
            sequence.num_computed -= length"""

MUTATIONS = [
    # Blocks
    _bug(
        "a block is not freed on cancel",
        "scheduling.scheduler:Scheduler.abort",
        "self.requests.end(sequence)",
        "sequence.block_table = []; self.requests.end(sequence)",
    ),
    _bug(
        "a block is freed twice",
        "scheduling.scheduler:Scheduler.abort",
        "self.requests.end(sequence)",
        "table = list(sequence.block_table); self.requests.end(sequence); self.block_manager.pool.decref(table)",
    ),
    _bug(
        "blocks are freed while a step computes them",
        "scheduling.active_requests:ActiveRequests.free_if_idle",
        "if not sequence.num_chunks_in_flight:",
        "if sequence.request_id in self._ending:",
    ),
    _bug(
        "a block of the window is freed one early",
        "scheduling.block_manager:BlockManager._evict_outside_window",
        "self.geometry.first_visible_block(sequence.num_computed), sequence",
        "self.geometry.first_visible_block(sequence.num_computed + self._block_size), sequence",
    ),
    _bug(
        "the window is off by one",
        "scheduling.block_geometry:BlockGeometry.first_visible_block",
        "position - self.window + 1",
        "position - self.window + 2",
    ),
    _bug(
        "blocks left of the window are never freed",
        "scheduling.block_manager:BlockManager.commit",
        "if self.geometry.window is not None:",
        "if False:",
    ),
    _bug(
        "a preempted request's blocks are not freed",
        "scheduling.active_requests:ActiveRequests.preempt",
        "self._block_manager.free(victim)",
        "victim.block_table = []",
    ),
    _bug(
        "a hit block stays in the free list",
        "scheduling.block_pool:BlockPool.incref",
        "del self._free[block_id]",
        "pass",
    ),
    _bug(
        "a shared block is freed by its first holder",
        "scheduling.block_pool:BlockPool.decref",
        "self._references[block_id] -= 1",
        "self._references[block_id] = 0",
    ),
    # The prefix cache
    _bug(
        "a block is found before it is computed",
        "scheduling.scheduler:Scheduler._schedule",
        "step.add(sequence, length, reaches_end=length == needed)",
        CACHED_EARLY,
    ),
    _bug(
        "a reused block is still found",
        "scheduling.block_pool:BlockPool._take_oldest",
        "if block_hash is not None:",
        "if False:",
    ),
    _bug(
        "tokens are not compared on a hit",
        "scheduling.block_pool:BlockPool.lookup",
        " and cached.token_ids == token_ids",
        "",
    ),
    _bug("a prefix is shared across salts", "scheduling.sequence:Sequence._root_hash", "request.cache_salt", '""'),
    _bug("a prefix is shared across tenants", "scheduling.sequence:Sequence._root_hash", "self.cache_tenant", "None"),
    _bug(
        "a prefix is shared across numbers of experts",
        "scheduling.sequence:Sequence._root_hash",
        "request.experts_per_token",
        "None",
    ),
    _bug(
        "a prefix is shared across expert masks",
        "scheduling.sequence:Sequence._root_hash",
        "request.expert_mask",
        "None",
    ),
    _bug(
        "a later block takes an earlier one's hash",
        "scheduling.block_pool:BlockPool.cache_block",
        "block_hash not in self._index and ",
        "",
    ),
    _bug(
        "a hit reaches behind the window's blocks",
        "scheduling.block_manager:BlockManager._longest_visible",
        "self.geometry.first_visible_block(count * self._block_size)",
        "count - 1",
    ),
    # The scheduling order
    _bug(
        "the first in order is preempted",
        "scheduling.active_requests:ActiveRequests.pick_victim",
        "reversed(self.running)",
        "self.running",
    ),
    _bug(
        "a request is preempted while a step computes it",
        "scheduling.active_requests:ActiveRequests.pick_victim",
        "if not s.num_chunks_in_flight",
        "if s",
    ),
    _bug("priority is inverted", "scheduling.scheduler:Scheduler.add", "(request.priority if", "(-request.priority if"),
    _bug(
        "a priority counts among all tenants",
        "scheduling.waiting_queue:WaitingQueue._turn",
        "return True, self.fair_share.served(head.tenant), head",
        "return True, head.order[0], head",
    ),
    _bug(
        "a tenant's shares are ignored",
        "scheduling.waiting_queue:WaitingQueue._turn",
        "self.fair_share.served(head.tenant)",
        "0",
    ),
    _bug(
        "a preempted request waits for its tenant's share",
        "scheduling.waiting_queue:WaitingQueue._turn",
        "if head.num_preemptions:",
        "if False:",
    ),
    _bug(
        "an urgent request is placed before other tenants' requests",
        "scheduling.active_requests:ActiveRequests._give_place",
        "sequence.place = self._next_place()",
        "sequence.place = sequence.order[0] * 10**6 + self._next_place()",
    ),
    _bug(
        "an urgent request is placed behind its tenant's others",
        "scheduling.active_requests:ActiveRequests._give_place",
        "if behind and",
        "if False and",
    ),
    _bug(
        "a preempted request is placed before its tenant's urgent ones",
        "scheduling.active_requests:ActiveRequests._give_place",
        " or (before and before[-1].place > sequence.place)",
        "",
    ),
    _bug(
        "a preempted request never waits again",
        "scheduling.active_requests:ActiveRequests.preempt",
        "self.waiting.push(victim)",
        "pass",
    ),
    _bug(
        "no step runs while requests only wait",
        "scheduling.scheduler:Scheduler.has_work",
        "self.requests.running or len(self.requests.waiting)",
        "self.requests.running",
    ),
    _bug(
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
    _bug(
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
                "scheduling.block_manager:BlockManager.attach_prefix",
                "len(hits) * self._block_size",
                "max(sequence.num_computed, len(hits) * self._block_size)",
            ),
        ),
    ),
    # Finished requests
    _bug(
        "a finished request stays unfinished",
        "scheduling.active_requests:ActiveRequests.end",
        "del self.unfinished[sequence.request_id]",
        "pass",
    ),
    _bug(
        "a deadline never fires",
        "scheduling.deadlines:Deadlines.pop_expired",
        "self._heap[0][0] <= now",
        "self._heap[0][0] <= -1.0",
    ),
    _bug(
        "a queue deadline ends a request that has started",
        "scheduling.active_requests:ActiveRequests.pop_expired",
        "sequence.first_scheduled_s is None",
        "True",
    ),
    _bug(
        "an expired request gets no output",
        "engine:Engine._step",
        "self._take_rejected() + expired",
        "self._take_rejected()",
    ),
    _bug(
        "a rejected request gets two outputs",
        "engine:Engine._take_rejected",
        "self._rejected, []",
        "self._rejected, list(self._rejected)",
    ),
    _bug(
        "min_tokens is ignored",
        "scheduling.request_outputs:finish_reason",
        "if is_end_token and num_generated > params.min_tokens",
        "if is_end_token",
    ),
    _bug("ignore_eos is ignored", "scheduling.request_outputs:finish_reason", " and not params.ignore_eos", ""),
    _bug(
        "one token too many",
        "scheduling.request_outputs:finish_reason",
        "num_generated >= sequence.max_generated",
        "num_generated > sequence.max_generated",
    ),
    _bug(
        "usage is counted twice",
        "scheduling.expert_usage:ExpertUsage.add",
        "max(start, self._num_seen), max(",
        "start, max(",
    ),
    _bug(
        "a prompt's experts are reported twice",
        "scheduling.request_outputs:progress_output",
        "sequence.num_generated == (1 if sampled else 0)",
        "sequence.num_generated <= 1",
    ),
    # Asynchronous scheduling
    _bug(
        "a step is applied twice",
        "execution.step_pipeline:StepPipeline._launch",
        "return completed[:-1] if keeps_one else completed",
        "return completed",
    ),
    _bug("a stale token is read", "scheduling.sequence:Sequence.num_to_schedule", "self.needs_last_token or ", ""),
    _bug(
        "a token in flight is not counted",
        "scheduling.step_plan_builder:StepPlanBuilder.build",
        "chunk.sequence.num_pending_tokens += chunk.samples",
        "pass",
    ),
    # Faults
    _bug(
        "a failed request's blocks are not zeroed",
        "scheduling.block_manager:BlockManager.take_blocks_to_zero",
        "return tuple(blocks)",
        "return ()",
    ),
    _bug(
        "a failed request's blocks stay findable",
        "scheduling.block_manager:BlockManager.invalidate",
        "self.pool.uncache(",
        "list(",
    ),
    _bug(
        "a row that fails after its cancel is ignored",
        "scheduling.step_commit:StepCommitter._apply_chunk",
        "isinstance(outcome, RowFailed):\n                self",
        "False:\n                self",
    ),
    _bug(
        "blocks are zeroed again when results are fetched",
        "execution.step_pipeline:StepPipeline._finish",
        "self._isolate_faults(pending.plan, result) if",
        "self._runner.zero_blocks(pending.plan.blocks_to_zero) or self._isolate_faults(pending.plan, result) if",
    ),
    _bug(
        "a prompt's positions are not checked for NaN",
        "execution.model_runner:ModelRunner.finish",
        "step.finite is not None",
        "False",
    ),
    _bug(
        "a step that raises ends all of its requests",
        "execution.fault_isolation:_FaultIsolation.run_halves",
        "if not second:",
        'if fault.kind == "other":',
    ),
    _bug(
        "a request that raises is dropped in silence",
        "execution.fault_isolation:_FaultIsolation._fail_single",
        "return _failed(plan,",
        "return StepResult({}) or _failed(plan,",
    ),
    _bug(
        "the second half of a step is not computed again",
        "execution.fault_isolation:_FaultIsolation.run_halves",
        "if rest else result",
        "if False else result",
    ),
    _bug(
        "half a chunk samples",
        "execution.fault_isolation:_halves",
        "chunk._replace(length=length, samples=False)",
        "chunk._replace(length=length)",
    ),
    _bug(
        "experts of half a chunk are lost",
        "execution.fault_isolation:_merged",
        "[a + b for a, b in zip(earlier, layers, strict=True)]",
        "layers",
    ),
    _bug(
        "a result that cannot be applied ends the engine",
        "scheduling.step_commit:StepCommitter._apply_chunk",
        "except Exception:",
        "except KeyError:",
    ),
    # Persistent batch
    _bug(
        "a resumed request's row keeps its old blocks",
        "execution.persistent_batch:PersistentBatch._write_blocks",
        "written = evicted = 0",
        "pass",
    ),
    _bug(
        "a row is reused while a step uses it",
        "execution.persistent_batch:PersistentBatch._reclaim",
        " and not s.num_chunks_in_flight",
        "",
    ),
    _bug(
        "new blocks are not written to the row",
        "execution.persistent_batch:PersistentBatch._write_blocks",
        "self.block_tables[row, written:num_blocks] = table[written:]",
        "pass",
    ),
    _bug(
        "a kept batch is taken for other requests",
        "execution.input_batch:BatchBuilder.build",
        "self._decode_batch.rows is not rows",
        "len(self._decode_batch.rows) != len(rows)",
    ),
    _bug(
        "kept sampling rows are taken for other requests",
        "execution.sampler:Sampler._fill",
        "kept.rows is not rows.rows",
        "len(kept.rows) != len(rows.rows)",
    ),
    _bug(
        "kept tables are not rebuilt",
        "execution.persistent_batch:PersistentBatch.update",
        "self._last_states, self._last_tables = states, None",
        "self._last_states = states",
    ),
]
