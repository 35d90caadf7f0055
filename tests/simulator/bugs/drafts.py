"""Bugs in drafts: what counts as computed, what is accepted, and what a wrong draft leaves behind."""

from tests.simulator.bugs.edits import bug

DRAFT_BUGS = [
    bug(
        "wrong drafted positions count as computed",
        "scheduling.step_commit:StepCommitter._commit_chunk",
        "num_positions -= len(chunk.draft) - (len(tokens) - 1)",
        "pass",
    ),
    bug(
        "one position too few counts as computed behind a draft",
        "scheduling.step_commit:StepCommitter._commit_chunk",
        "len(chunk.draft) - (len(tokens) - 1)",
        "len(chunk.draft) - (len(tokens) - 1) + (len(tokens) > 1)",
    ),
    bug(
        "wrong drafted positions stay scheduled",
        "scheduling.step_commit:StepCommitter._commit_positions",
        "sequence.num_scheduled -= chunk.length - num_positions",
        "pass",
    ),
    bug(
        "tokens behind the end are kept",
        "scheduling.step_commit:StepCommitter._until_end",
        "return tokens[:count]",
        "return tokens",
    ),
    bug(
        "the end is found one token late",
        "scheduling.step_commit:StepCommitter._until_end",
        "sequence.num_generated + count",
        "sequence.num_generated + count - 1",
    ),
    bug(
        "experts of wrong drafted positions are reported",
        "scheduling.step_commit:StepCommitter._commit_positions",
        "layer[:num_positions]",
        "layer",
    ),
    bug(
        "the window slides past wrong drafted positions",
        "scheduling.step_commit:StepCommitter._commit_positions",
        "self._block_manager.commit(sequence)",
        "sequence.num_computed += chunk.length - num_positions; "
        "self._block_manager.geometry.window and self._block_manager._evict_outside_window(sequence); "
        "sequence.num_computed -= chunk.length - num_positions; "
        "self._block_manager.commit(sequence)",
    ),
    bug(
        "accepted tokens are charged twice",
        "scheduling.step_commit:StepCommitter._finish_or_continue",
        "sequence.output_cost * len(tokens)",
        "sequence.output_cost * (2 * len(tokens) - 1)",
    ),
    bug(
        "wrong drafted tokens are charged",
        "scheduling.step_commit:StepCommitter._commit_chunk",
        "return self._finish_or_continue(sequence, tokens, now)",
        "self._fair_share.charge(sequence.tenant, sequence.output_cost * (chunk.length - num_positions)); "
        "return self._finish_or_continue(sequence, tokens, now)",
    ),
    bug(
        "a draft is scheduled again while it is in flight",
        "scheduling.sequence:Sequence.num_to_schedule",
        "max(0, length + pending - self.num_scheduled)",
        "abs(length + pending - self.num_scheduled)",
    ),
    bug(
        "a draft has no blocks",
        "scheduling.scheduler:Scheduler._add_drafts",
        "draft[:length]",
        "draft",
    ),
    bug(
        "a drafted chunk is split with its draft",
        "execution.fault_isolation:isolate_faults",
        "chunk.without_draft() for",
        "chunk for",
    ),
    bug(
        "a draft is not written",
        "execution.draft_batch:DraftBatches._write",
        "token_ids += chunk.draft",
        "token_ids += [sequence.token_ids[chunk.start]] * len(chunk.draft)",
    ),
    bug(
        "accepted tokens are not written behind a draft",
        "execution.persistent_batch:PersistentBatch.write_drafts",
        "if not chunk.draft and row not in self._drafted_rows:",
        "if not chunk.draft:",
    ),
    bug(
        "the tokens of requests without drafts are lost beside drafts",
        "execution.draft_sampling:DraftSampling._new_rows",
        "history=self._requests.tokens",
        "history=self._requests.tokens.clone()",
    ),
    bug(
        "the token behind a wrong one is accepted",
        "speculation.acceptance:num_accepted",
        "return count",
        "return min(count + 1, len(draft))",
    ),
    bug(
        "a draft that gave NaN ends its request",
        "execution.model_runner:ModelRunner.finish",
        "if c.draft and outcomes",
        "if False and outcomes",
    ),
    bug(
        "the NaN of a draft stays in its slots",
        "execution.model_runner:ModelRunner._run_without_drafts",
        "self.zero_drafts",
        "id",
    ),
    bug(
        "the NaN of a draft stays in its slots when its step fails",
        "execution.step_pipeline:StepPipeline._isolate_faults",
        "self._runner.zero_drafts(plan)",
        "pass",
    ),
    # Under a grammar
    bug(
        "the text's own parser consumes the guesses",
        "grammars.lookahead:Lookahead._advance",
        "self._parser.deep_copy()",
        "self._parser",
    ),
    bug(
        "the copy stays behind other guesses",
        "grammars.lookahead:Lookahead.mask_behind",
        "self._copy = None",
        "pass",
    ),
    bug(
        "masks behind other guesses are kept",
        "grammars.lookahead:Lookahead.mask_behind",
        "del self._path[num_known:], self._masks[num_known + 1 :]",
        "del self._path[num_known:]",
    ),
    bug(
        "a new copy does not consume the known guesses",
        "grammars.lookahead:Lookahead._advance",
        "self._copy.consume_tokens(self._path)",
        "pass",
    ),
    bug(
        "a row of a draft has the mask of the row before",
        "execution.logit_masks:grammar_mask",
        "matcher.draft_bitmask(guessed)",
        "matcher.draft_bitmask(guessed[:-1])",
    ),
    bug(
        "parameters of a draft are kept for other requests",
        "execution.draft_sampling:DraftSampling.prepare",
        "if (ids, row_indices) != (self._owners[0][:num_rows], self._owners[1][: len(row_indices)]):",
        "if len(ids) > len(self._owners[0]):",
    ),
    bug(
        "all rows of a draft have the mask of the first",
        "execution.logit_masks:grammar_mask",
        "if guessed:",
        "if False:",
    ),
]
