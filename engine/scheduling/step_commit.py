"""Apply the results of a step: commit computed positions, append sampled tokens, end requests, build the outputs."""

import logging

from engine.scheduling.active_requests import ActiveRequests
from engine.scheduling.blocks.manager import BlockManager
from engine.scheduling.fairness import FairShare
from engine.scheduling.request_outputs import error_output, final_output, finish_reason, progress_output
from engine.scheduling.sequence import Sequence, Status
from engine.scheduling.step_plan import Chunk, RowFailed, Sampled, StepPlan, StepResult
from engine.types import RequestOutput

RESULT_FAILED = "the engine failed while processing this request's results"

log = logging.getLogger("smoe.engine")


class StepCommitter:
    """Committer of step results; mutates the sequences of the plan."""

    def __init__(
        self,
        requests: ActiveRequests,
        block_manager: BlockManager,
        fair_share: FairShare,
    ) -> None:
        self._requests = requests
        self._block_manager = block_manager
        self._fair_share = fair_share

    def apply(self, plan: StepPlan, result: StepResult, now: float) -> list[RequestOutput]:
        """Commit the results of a step and return the outputs of its requests."""
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
                self._block_manager.invalidate(sequence)
            self._requests.free_if_idle(sequence)
            return None
        if isinstance(outcome, RowFailed):
            return self._fail(sequence, outcome.message, now)
        try:
            if outcome is None or chunk.draft or sequence.experts or sequence.first_token_s is None:
                return self._commit_chunk(chunk, outcome, result, now)
            return self._commit_next(chunk, outcome, now)
        except AssertionError:
            raise  # the book-keeping is wrong, which no single request has caused
        except Exception:
            log.exception(
                "the results of request %d could not be processed; it ends with an error", sequence.request_id
            )
            return self._fail(sequence, RESULT_FAILED, now)

    def _commit_next(self, chunk: Chunk, sampled: Sampled, now: float) -> RequestOutput:
        """Commit the next token of a request that has one already and reports no experts, as nearly all chunks do:
        _commit_chunk in few calls."""
        sequence, token_id = chunk.sequence, sampled.token_id
        token_ids = sequence.token_ids
        token_ids.append(token_id)
        sequence.num_computed += chunk.length
        self._block_manager.commit(sequence)
        if token_id in sequence.end_token_ids or len(token_ids) - sequence.num_prompt_tokens >= sequence.max_generated:
            return self._finish_or_continue(sequence, [sampled], now)
        self._fair_share.charge(sequence.tenant, sequence.output_cost)
        logprobs = None if sampled.logprobs is None else [sampled.logprobs]
        return RequestOutput(sequence.request_id, [token_id], logprobs, num_cached_tokens=sequence.num_cached_tokens)

    def _commit_chunk(
        self, chunk: Chunk, outcome: Sampled | None, result: StepResult, now: float
    ) -> RequestOutput | None:
        sequence = chunk.sequence
        tokens = [] if outcome is None else [outcome]
        num_positions = chunk.length
        if chunk.draft:
            tokens = self._until_end(sequence, tokens + result.behind_drafts.get(sequence.request_id, []))
            num_positions -= len(chunk.draft) - (len(tokens) - 1)
        self._commit_positions(chunk, num_positions, tokens, result)
        if tokens:
            return self._finish_or_continue(sequence, tokens, now)
        if not sequence.request.params.max_tokens and sequence.num_computed == sequence.num_prompt_tokens:
            self._requests.end(sequence)
            embedding = result.embeddings.get(sequence.request_id)
            return final_output(sequence, "length" if embedding is None else "stop", now, embedding=embedding)
        return None

    def _commit_positions(self, chunk: Chunk, num_positions: int, tokens: list[Sampled], result: StepResult) -> None:
        """Count the chunk's first `num_positions` as computed, and append the tokens that its rows sampled. The other
        positions hold drafted tokens that were wrong: they are computed again."""
        sequence = chunk.sequence
        if sequence.experts and sequence.request_id in result.expert_choices:
            choices = result.expert_choices[sequence.request_id]
            gates = result.gate_logits.get(sequence.request_id, ())
            sequence.experts.add(chunk.start, [layer[:num_positions] for layer in choices], gates)
        sequence.token_ids += [token.token_id for token in tokens]
        sequence.num_computed += num_positions
        sequence.num_scheduled -= chunk.length - num_positions
        self._block_manager.commit(sequence)
        if result.prompt_logprobs and sequence.first_token_s is None:  # else they were sent, before a preemption
            sequence.prompt_logprobs += result.prompt_logprobs.get(sequence.request_id, [])

    def _until_end(self, sequence: Sequence, tokens: list[Sampled]) -> list[Sampled]:
        """Return the tokens up to the one that ends the sequence."""
        for count, token in enumerate(tokens, 1):
            num_generated = sequence.num_generated + count
            if finish_reason(sequence, token.token_id, num_generated)[0] is not None:
                return tokens[:count]
        return tokens

    def _finish_or_continue(self, sequence: Sequence, tokens: list[Sampled], now: float) -> RequestOutput:
        """Return the output of the tokens that were just appended, and end the sequence with the last one."""
        self._fair_share.charge(sequence.tenant, sequence.output_cost * len(tokens))
        if sequence.first_token_s is None:
            sequence.first_token_s = now
        last, num_generated = tokens[-1].token_id, sequence.num_generated
        reason, stop_token_id = finish_reason(sequence, last, num_generated)
        if reason is not None:
            self._requests.end(sequence)
            return final_output(sequence, reason, now, sampled=tokens, stop_token_id=stop_token_id)
        output = progress_output(sequence, tokens)
        if sequence.prompt_logprobs:
            sequence.prompt_logprobs = []  # the first output has them, and no other one will
        return output

    def _fail(self, sequence: Sequence, message: str, now: float) -> RequestOutput:
        """End a sequence whose own data is at fault, unless it has ended. Its blocks leave the prefix cache."""
        self._block_manager.invalidate(sequence)
        if sequence.status is not Status.FINISHED:
            self._requests.end(sequence)
        return error_output(sequence, message, now)
