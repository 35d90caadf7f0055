"""A tokenized prompt, and the limits on its length and on what is generated after it."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.messages import Ready
from server.errors import context_length_exceeded, prompt_too_long
from server.generation.choice import Echo
from server.generation.prediction import NO_PREDICTION, PredictedTokens
from server.generation.state import TextFrontend
from server.schemas import GenerationRequest
from server.schemas.generation import UNBOUNDED


@dataclass(frozen=True)
class Prompt:
    """One tokenized prompt."""

    token_ids: list[int]
    is_continued: bool  # the reply continues the prompt's text, instead of being a text of its own
    echo: Echo | None = None
    prediction: PredictedTokens = NO_PREDICTION  # of the text that the reply probably resembles


def truncated(token_ids: list[int], request: GenerationRequest, ready: Ready) -> list[int]:
    """Return the last `truncate_prompt_tokens` ids of a prompt; all of them if the request has no such field.

    UNBOUNDED keeps as many as leave room for the completion. With `truncation_side` "right", which is cut off then, the
    first ones are kept.
    """
    keep = request.truncate_prompt_tokens
    if keep == UNBOUNDED:
        keep = max(1, min(ready.max_prompt_tokens, ready.max_model_len - (request.completion_limit or 1)))
    if keep is None or keep >= len(token_ids):
        return token_ids
    return token_ids[:keep] if request.truncation_side == "right" else token_ids[-keep:]


def check_prompt_chars(texts: TextFrontend, ready: Ready, contents: Sequence[str], param: str) -> None:
    """Raise ApiError 400 for texts that are too long whatever their tokens are, without tokenizing them."""
    num_tokens = sum(map(texts.tokenizer.min_num_tokens, contents))
    if num_tokens > ready.max_prompt_tokens:
        raise prompt_too_long(num_tokens, ready.max_prompt_tokens, ready.max_model_len, param)


def completion_limit(request: GenerationRequest, num_prompt: int, ready: Ready) -> int:
    """Return how many tokens may be generated after a prompt of `num_prompt` tokens.

    That is the request's limit; without one, all tokens that the prompt leaves room for. The endpoint's default limit
    shrinks to that room; a limit that the client sent raises ApiError 400 if it exceeds the room.
    """
    param, limit = request.prompt_field, request.completion_limit
    if num_prompt > ready.max_prompt_tokens:
        raise prompt_too_long(num_prompt, ready.max_prompt_tokens, ready.max_model_len, param)
    room = ready.max_model_len - num_prompt
    if limit is None or request.has_default_limit:
        if room < 1:
            raise context_length_exceeded(num_prompt, limit or 1, ready.max_model_len, param)
        return room if limit is None else min(limit, room)
    if limit > room:
        blamed = request.limit_field if room > 0 else param
        raise context_length_exceeded(num_prompt, limit, ready.max_model_len, blamed)
    return limit
