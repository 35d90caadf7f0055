"""Log probabilities of the prompt's tokens in vLLM's format: per token a mapping by token id, null for the first."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypedDict

import orjson

from engine.types import TokenLogprobs
from server.api.formats.logprobs import TokenTexts, finite
from server.api.formats.sliced_logprobs import VALUES_PER_TURN


class PromptLogprob(TypedDict):
    """One candidate for a token of the prompt. `rank`: 1 for the likeliest, null for a token outside the candidates."""

    logprob: float
    rank: int | None
    decoded_token: str


async def prompt_logprobs(
    entries: Sequence[TokenLogprobs], num_top: int, texts: TokenTexts, next_turn: Callable[[], Awaitable[None]]
) -> orjson.Fragment:
    """Return the JSON of the list: `entries` are of the prompt's tokens from the second on.

    Rendered in slices; waits for `next_turn` before each but the first.
    """
    size = max(1, VALUES_PER_TURN // (1 + num_top))
    pieces = [b"null"]
    for first in range(0, len(entries), size):
        if first:
            await next_turn()
        mappings = [_by_id(entry, num_top, texts) for entry in entries[first : first + size]]
        pieces.append(orjson.dumps(mappings)[1:-1])
    return orjson.Fragment(b"[" + b",".join(pieces) + b"]")


def _by_id(entry: TokenLogprobs, num_top: int, texts: TokenTexts) -> dict[str, PromptLogprob]:
    """Map ids to candidates: the `num_top` likeliest tokens and the prompt's own."""
    candidates = list(zip(entry.top_ids, entry.top_logprobs, range(1, len(entry.top_ids) + 1), strict=True))
    own = next((rank for token_id, _, rank in candidates if token_id == entry.token_id), None)
    chosen = [*candidates[:num_top], (entry.token_id, entry.logprob, own)]
    names = texts.shown_texts(token_id for token_id, _, _ in chosen)
    return {
        str(token_id): {"logprob": finite(logprob), "rank": rank, "decoded_token": name}
        for (token_id, logprob, rank), name in zip(chosen, names, strict=True)
    }
