"""Translate a request's sampling fields to the engine's, with the checks that need the model's vocabulary."""

from collections.abc import Collection, Iterable

from engine.token_constraints import NO_CONSTRAINTS, TokenConstraints, token_constraints
from engine.types import SamplingParams
from server.errors import ApiError, invalid_value
from server.generation.generation_defaults import GenerationDefaults
from server.schemas import CompletionRequest, GenerationRequest
from server.settings.sampling_defaults import MAX_TOP_K

MIN_REPETITION_PENALTY = 1e-3  # smaller ones are raised to it: they could move logits out of float32's range
MAX_LISTED_IDS = 2**18  # token ids in a request's biases, allowed tokens, bad words and stop ids, times its choices


def sampling_params(
    request: GenerationRequest,
    *,
    max_tokens: int,
    seed: int,
    prompt_index: int,
    choice_index: int,
    defaults: GenerationDefaults,
    constraints: TokenConstraints = NO_CONSTRAINTS,
) -> SamplingParams:
    """Return the engine's parameters of one choice. `max_tokens` is the effective limit.

    `constraints`: those of the request, see packed_constraints; its choices share them. Raises ApiError 400 if
    `min_tokens` exceeds the limit.
    """
    if request.min_tokens > max_tokens:
        raise invalid_value(f"'min_tokens' must be at most {max_tokens} here.", "min_tokens")
    repetition_penalty = _or_default(request.penalty_of_repetition, defaults.repetition_penalty)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        temperature=_or_default(request.temperature, defaults.temperature),
        top_k=max(0, min(MAX_TOP_K, defaults.top_k if request.top_k is None else request.top_k)),
        top_p=_or_default(request.top_p, defaults.top_p),
        min_p=_or_default(request.min_p, defaults.min_p),
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        repetition_penalty=max(MIN_REPETITION_PENALTY, repetition_penalty),
        constraints=constraints,
        stop_token_ids=tuple(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        seed=seed,
        prompt_index=prompt_index,
        choice_index=choice_index,
        num_logprobs=request.num_scores,
        prompt_logprobs=request.scores_prompt,
    )


def packed_constraints(request: GenerationRequest, bad_words: Iterable[tuple[int, ...]]) -> TokenConstraints:
    """Return the request's biases, allowed tokens and bad words (as token ids) as arrays. Ids must be checked."""
    return token_constraints(
        logit_bias={int(token): bias for token, bias in request.logit_bias.items()},
        allowed_token_ids=request.allowed_token_ids,
        bad_words=bad_words,
    )


def check_token_ids(request: GenerationRequest, vocab_size: int, eos_ids: Iterable[int] = ()) -> None:
    """Raise ApiError 400 for an id outside the vocabulary, or if the request allows no token at all."""
    if isinstance(request, CompletionRequest):
        for prompt in request.prompt:
            if not isinstance(prompt, str):
                check_ids(prompt, vocab_size, "prompt")
    check_ids(map(int, request.logit_bias), vocab_size, "logit_bias")
    check_ids(request.stop_token_ids, vocab_size, "stop_token_ids")
    allowed = request.allowed_token_ids
    if allowed is not None:
        check_ids(allowed, vocab_size, "allowed_token_ids")
        if request.min_tokens > 0 and set(allowed) <= {*request.stop_token_ids, *eos_ids}:
            message = "'allowed_token_ids' has only end tokens, which 'min_tokens' forbids."
            raise invalid_value(message, "allowed_token_ids")


def check_bad_words(request: GenerationRequest, bad_words: Iterable[tuple[int, ...]]) -> None:
    """Raise ApiError 400 if `bad_words`, as token ids, forbid every token that the request allows."""
    forbidden = {word[0] for word in bad_words if len(word) == 1}
    if request.allowed_token_ids is not None and set(request.allowed_token_ids) <= forbidden:
        raise invalid_value("'bad_words' forbid every token of 'allowed_token_ids'.", "bad_words")


def check_listed_ids(request: GenerationRequest, bad_words: Collection[tuple[int, ...]], num_choices: int) -> None:
    """Raise ApiError 400 if the token ids that each choice carries exceed MAX_LISTED_IDS over all choices."""
    num_listed = {
        "logit_bias": len(request.logit_bias),
        "allowed_token_ids": len(request.allowed_token_ids or ()),
        "bad_words": sum(map(len, bad_words)),
        "stop_token_ids": len(request.stop_token_ids),
    }
    if sum(num_listed.values()) * num_choices > MAX_LISTED_IDS:
        param = max(num_listed, key=lambda name: num_listed[name])
        message = (
            f"'{param}' is too long for {num_choices} choices: together they may carry {MAX_LISTED_IDS} token ids."
        )
        raise ApiError(message, param=param, code="array_above_max_length")


def check_ids(ids: Iterable[int], vocab_size: int, param: str) -> None:
    """Raise ApiError 400 for an id outside the vocabulary."""
    ids = ids if isinstance(ids, list) else list(ids)
    if not ids or (min(ids) >= 0 and max(ids) < vocab_size):
        return
    for token_id in ids:
        if token_id < 0:
            raise ApiError(f"'{param}' has a negative token id.", param=param, code="integer_below_min_value")
        if token_id >= vocab_size:
            message = f"'{param}' has the token id {token_id}, outside the vocabulary of {vocab_size}."
            raise ApiError(message, param=param, code="integer_above_max_value")


def _or_default(value: float | None, default: float) -> float:
    return default if value is None else float(value)
