"""Bound on what a reply may list for each position: log probabilities, expert ids and gate logits.

They, not the text, are what makes a reply large: 256 choices of 400 tokens with 20 log probabilities are 57 MB.
"""

from collections.abc import Sequence

from engine.messages import Ready
from engine.types import Request
from server.errors import ApiError
from server.schemas import GenerationRequest

MAX_REPLY_VALUES = 1 << 19  # fewer where memory is short: as many as the memory for replies holds
SCORE_BYTES = 100  # of one log probability: id and number in lists, then about 30 bytes of JSON (chat: 80)
EXPERT_ID_BYTES = 12  # small integers are shared; then about 3 bytes of JSON
GATE_LOGIT_BYTES = 64  # a number and its place in a list, then about 20 bytes of JSON
GATE_LOGIT_VALUES = 16  # a gate logit costs as much time and room in a reply as so many expert ids


def limit_reply(
    request: GenerationRequest,
    ready: Ready,
    prompt_lengths: Sequence[int],
    limits: Sequence[int],
    max_values: int = MAX_REPLY_VALUES,
) -> list[int]:
    """Return the most tokens to generate for each choice of each prompt, so that the reply has few enough values.

    `limits`: the limits by the model's context and the request. Those that the client did not set itself are lowered as
    far as needed; others raise ApiError 400 if they are too high.
    """
    per_position = values_per_position(request, ready)
    lists_prompt = request.scores_prompt or request.has_prompt_routing
    num_prompt_positions = sum(prompt_lengths) if lists_prompt else 0
    room = max_values // max(1, per_position) // request.n - num_prompt_positions
    if not per_position or sum(limits) <= room:
        return list(limits)
    is_default = request.completion_limit is None or request.has_default_limit
    if not is_default or room < len(limits):
        raise _reply_too_large(request, per_position, max_values)
    return [min(limit, room // len(limits)) for limit in limits]


def values_per_position(request: GenerationRequest, ready: Ready) -> int:
    """Return how many values the reply lists for each position."""
    scores = 0 if request.num_scores is None else 1 + request.num_scores
    num_experts = request.experts_per_token or ready.experts_per_token
    ids = num_experts if request.has_routing else 0
    logits = ready.num_experts * GATE_LOGIT_VALUES if request.gate_logits else 0
    return scores + ready.num_layers * (ids + logits)


def reply_bytes(request: Request, ready: Ready) -> int:
    """Return the memory that the values of one choice may need, from above: as objects and as JSON."""
    params = request.params
    lists_prompt = params.prompt_logprobs or request.prompt_routing
    num_positions = params.max_tokens + (len(request.prompt_token_ids) if lists_prompt else 0)
    scores = 0 if params.num_logprobs is None else 1 + params.num_logprobs
    num_experts = ready.num_layers * (request.experts_per_token or ready.experts_per_token)
    gates = 2 * ready.num_layers * ready.num_experts * request.gate_logits  # logits, and at most as many weights
    routing = num_experts * request.expert_routing * EXPERT_ID_BYTES + gates * GATE_LOGIT_BYTES
    return num_positions * (scores * SCORE_BYTES + routing)


def _reply_too_large(request: GenerationRequest, per_position: int, max_values: int) -> ApiError:
    param = "gate_logits" if request.gate_logits else "expert_routing" if request.expert_routing else "logprobs"
    message = (
        f"The reply would be too large: with {per_position} values per token it may have at most "
        f"{max_values // per_position} tokens, over all prompts and choices and with echoed ones."
    )
    return ApiError(message, param=param, code="reply_too_large")
