"""Bugs in finished requests, asynchronous scheduling, faults and the persistent batch."""

from tests.simulator.bugs.edits import bug

EXECUTION_BUGS = [
    # Finished requests
    bug(
        "a finished request stays unfinished",
        "scheduling.active_requests:ActiveRequests.end",
        "del self.unfinished[sequence.request_id]",
        "pass",
    ),
    bug(
        "a deadline never fires",
        "scheduling.deadlines:Deadlines.pop_expired",
        "self._heap[0][0] <= now",
        "self._heap[0][0] <= -1.0",
    ),
    bug(
        "a queue deadline ends a request that has started",
        "scheduling.active_requests:ActiveRequests.pop_expired",
        "sequence.first_scheduled_s is None",
        "True",
    ),
    bug(
        "an expired request gets no output",
        "engine:Engine._step",
        "self._take_rejected() + expired",
        "self._take_rejected()",
    ),
    bug(
        "a rejected request gets two outputs",
        "engine:Engine._take_rejected",
        "self._rejected, []",
        "self._rejected, list(self._rejected)",
    ),
    bug(
        "min_tokens is ignored",
        "scheduling.request_outputs:finish_reason",
        " and num_generated > sequence.request.params.min_tokens",
        "",
    ),
    bug(
        "ignore_eos is ignored",
        "scheduling.sequence:Sequence.__init__",
        "() if params.ignore_eos else eos_token_ids",
        "eos_token_ids",
    ),
    bug(
        "one token too many",
        "scheduling.request_outputs:finish_reason",
        "num_generated >= sequence.max_generated",
        "num_generated > sequence.max_generated",
    ),
    bug(
        "usage is counted twice",
        "scheduling.expert_usage:ExpertUsage.add",
        "max(start, self._num_seen), max(",
        "start, max(",
    ),
    bug(
        "a prompt's experts are reported twice",
        "scheduling.request_outputs:progress_output",
        "sequence.num_generated == len(sampled)",
        "sequence.num_generated <= 1",
    ),
    # Asynchronous scheduling
    bug(
        "a step is applied twice",
        "execution.step_pipeline:StepPipeline._launch",
        "return completed[:-1] if keeps_one else completed",
        "return completed",
    ),
    bug("a stale token is read", "scheduling.sequence:Sequence.num_to_schedule", "self.needs_last_token or ", ""),
    bug(
        "a token in flight is not counted",
        "scheduling.step_plan_builder:StepPlanBuilder.build",
        "chunk.sequence.num_pending_tokens += chunk.samples",
        "pass",
    ),
    # Faults
    bug(
        "a failed request's blocks are not zeroed",
        "scheduling.blocks.manager:BlockManager.take_blocks_to_zero",
        "return tuple(blocks)",
        "return ()",
    ),
    bug(
        "a failed request's blocks stay findable",
        "scheduling.blocks.manager:BlockManager.invalidate",
        "self.pool.uncache(",
        "list(",
    ),
    bug(
        "a row that fails after its cancel is ignored",
        "scheduling.step_commit:StepCommitter._apply_chunk",
        "isinstance(outcome, RowFailed):\n                self",
        "False:\n                self",
    ),
    bug(
        "blocks are zeroed again when results are fetched",
        "execution.step_pipeline:StepPipeline._finish",
        "self._isolate_faults(pending.plan, result) if",
        "self._runner.zero_blocks(pending.plan.blocks_to_zero) or self._isolate_faults(pending.plan, result) if",
    ),
    bug(
        "a prompt's positions are not checked for NaN",
        "execution.model_runner:ModelRunner.finish",
        "step.finite is not None",
        "False",
    ),
    bug(
        "a step that raises ends all of its requests",
        "execution.fault_isolation:_FaultIsolation.run_halves",
        "if not second:",
        'if fault.kind == "other":',
    ),
    bug(
        "a request that raises is dropped in silence",
        "execution.fault_isolation:_FaultIsolation._fail_single",
        "return _failed(plan,",
        "return StepResult({}) or _failed(plan,",
    ),
    bug(
        "the second half of a step is not computed again",
        "execution.fault_isolation:_FaultIsolation.run_halves",
        "if rest else result",
        "if False else result",
    ),
    bug(
        "half a chunk samples",
        "execution.fault_isolation:_halves",
        "replace(chunk, length=length, samples=False)",
        "replace(chunk, length=length)",
    ),
    bug(
        "experts of half a chunk are lost",
        "execution.fault_isolation:_merged",
        "[a + b for a, b in zip(earlier, layers, strict=True)]",
        "layers",
    ),
    bug(
        "a result that cannot be applied ends the engine",
        "scheduling.step_commit:StepCommitter._apply_chunk",
        "except Exception:",
        "except KeyError:",
    ),
    # Embeddings
    bug("the row before a prompt's last is embedded", "execution.embeddings:hidden_rows", "end - 1", "max(0, end - 2)"),
    bug(
        "embeddings of a step's first half are lost",
        "execution.fault_isolation:_merged",
        "first.embeddings | second.embeddings",
        "second.embeddings",
    ),
    bug(
        "a prompt is embedded at its first chunk",
        "scheduling.step_commit:StepCommitter._commit_chunk",
        "sequence.num_computed == sequence.num_prompt_tokens",
        "True",
    ),
    # Persistent batch
    bug(
        "a resumed request's row keeps its old blocks",
        "execution.persistent_batch:PersistentBatch._write_blocks",
        "written = evicted = 0",
        "pass",
    ),
    bug(
        "a row is reused while a step uses it",
        "execution.persistent_batch:PersistentBatch._reclaim",
        " and not s.num_chunks_in_flight",
        "",
    ),
    bug(
        "new blocks are not written to the row",
        "execution.persistent_batch:PersistentBatch._write_blocks",
        "self._table_view[row, place] = table[place]",
        "pass",
    ),
    bug(
        "a kept batch is taken for other requests",
        "execution.input_batch:BatchBuilder.build",
        "self._decode_batch.rows is not rows",
        "len(self._decode_batch.rows) != len(rows)",
    ),
    bug(
        "kept sampling rows are taken for other requests",
        "execution.sampler:Sampler.prepare",
        "kept.rows is not rows.rows",
        "len(kept.rows) != len(rows.rows)",
    ),
    bug(
        "kept tables are not rebuilt",
        "execution.persistent_batch:PersistentBatch.update",
        "self._update_tables(index, row, num_blocks=state[0])",
        "pass",
    ),
]
