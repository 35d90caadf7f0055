"""Build the outputs of a request after a step, and detect its end. Pure functions of the sequence."""

from collections.abc import Sequence as SequenceOf

import msgspec

from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import Sampled
from engine.types import FinishReason, RequestOutput


def finish_reason(sequence: Sequence, token_id: int, num_generated: int) -> tuple[FinishReason | None, int | None]:
    """Return the finish reason, None if the sequence continues, and the end or stop token that finished it.

    `token_id`: the last of `num_generated` tokens.
    """
    if token_id in sequence.end_token_ids and num_generated > sequence.request.params.min_tokens:
        return "stop", token_id
    if num_generated >= sequence.max_generated:
        return "length", None
    return None, None


def progress_output(sequence: Sequence, sampled: SequenceOf[Sampled]) -> RequestOutput:
    """Return the new tokens, which the sequence has already, and everything collected since the last output."""
    token_ids = [token.token_id for token in sampled]
    logprobs = None
    if sampled and sampled[0].logprobs is not None:
        logprobs = [token.logprobs for token in sampled if token.logprobs] or None
    is_first = sequence.num_generated == len(sampled)
    if not is_first and not sequence.experts:  # nearly all outputs: the checks below are not needed
        return RequestOutput(sequence.request_id, token_ids, logprobs, num_cached_tokens=sequence.num_cached_tokens)
    request, params, experts = sequence.request, sequence.request.params, sequence.experts
    return RequestOutput(
        request_id=sequence.request_id,
        token_ids=token_ids,
        logprobs=logprobs,
        prompt_logprobs=sequence.prompt_logprobs if is_first and params.prompt_logprobs else None,
        num_cached_tokens=sequence.num_cached_tokens,
        expert_prompt_tokens=experts.prompt_tokens() if experts and is_first and request.expert_usage else None,
        expert_routing=experts.pop_routing() if experts and request.expert_routing else None,
        gate_logits=experts.pop_gates() if experts and request.gate_logits else None,
    )


def final_output(
    sequence: Sequence,
    reason: FinishReason,
    now: float,
    *,
    sampled: SequenceOf[Sampled] = (),
    stop_token_id: int | None = None,
    embedding: bytes | None = None,
) -> RequestOutput:
    """Return the last output of a request that finished or whose deadline passed."""
    return msgspec.structs.replace(
        progress_output(sequence, sampled),
        finish_reason=reason,
        stop_token_id=stop_token_id,
        embedding=embedding,
        timing=sequence.timing(now),
    )


def error_output(sequence: Sequence, message: str, now: float) -> RequestOutput:
    """Return the last output of a request that failed. Reads no expert counts: they may have caused the failure."""
    return RequestOutput(
        sequence.request_id,
        finish_reason="error",
        error=message,
        num_cached_tokens=sequence.num_cached_tokens,
        timing=sequence.timing(now),
    )
