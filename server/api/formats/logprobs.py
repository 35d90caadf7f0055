"""Log probabilities in two formats: parallel arrays for completions, and a list of entries for chat."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypedDict

import msgspec

from engine.types import TokenLogprobs
from server.generation.choice import Position

MIN_LOGPROB = -9999.0  # JSON has no -Infinity


class TokenTexts(Protocol):
    """Texts and bytes of tokens: server.tokenizer.tokenizer.Tokenizer."""

    def token_bytes(self, token_id: int) -> bytes: ...
    def shown_texts(self, token_ids: Iterable[int]) -> list[str]: ...
    def byte_values(self, token_ids: Iterable[int]) -> list[list[int]]: ...


class CompletionLogprobs(TypedDict):
    """Parallel arrays: entry i belongs to token i, including echoed prompt tokens."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TopLogprob(TypedDict):
    """One candidate at one position."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprobs(TopLogprob):
    """The sampled token, and the most likely tokens at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """List of one entry per generated token."""

    content: list[ChatTokenLogprobs]


def completion_logprobs(positions: Sequence[Position], texts: TokenTexts, num_top: int = 20) -> CompletionLogprobs:
    """Return the arrays of completions. The first token of a prompt has null, because it has no prediction.

    `num_top`: how many of the likeliest tokens to list; the engine may have been asked for more.
    """
    entries = [position.logprobs and _with_top(position.logprobs, num_top) for position in positions]
    return {
        "tokens": texts.shown_texts(position.token_id for position in positions),
        "token_logprobs": [finite(entry.logprob) if entry else None for entry in entries],
        "top_logprobs": [_by_text(entry, texts) if entry else None for entry in entries],
        "text_offset": [position.text_offset for position in positions],
    }


def chat_logprobs(positions: Sequence[Position], texts: TokenTexts, num_top: int = 20) -> ChatLogprobs:
    """Return the entries of chat: their tokens join to the content, and their bytes to its bytes.

    So an end token is the text "", and a first token lacks the space that the content lacks. All `positions` have
    logprobs, since a chat's prompt is never echoed. `num_top`: as for completions.
    """
    scored = [(position, position.logprobs) for position in positions if position.logprobs]
    entries = [_chat_entry(position, _with_top(logprobs, num_top), texts) for position, logprobs in scored]
    return {"content": entries}


def _with_top(entry: TokenLogprobs, num_top: int) -> TokenLogprobs:
    if len(entry.top_ids) <= num_top:
        return entry
    return msgspec.structs.replace(entry, top_ids=entry.top_ids[:num_top], top_logprobs=entry.top_logprobs[:num_top])


def _by_text(entry: TokenLogprobs, texts: TokenTexts) -> dict[str, float]:
    """Map texts to logprobs, of the most likely tokens and of the token itself.

    If two tokens have the same text, the likelier one counts.
    """
    *names, own = texts.shown_texts((*entry.top_ids, entry.token_id))
    logprobs = _finite(entry.top_logprobs)
    by_text = dict(zip(names, logprobs, strict=True))
    if len(by_text) < len(names):
        by_text = {}
        for name, logprob in zip(names, logprobs, strict=True):
            by_text.setdefault(name, logprob)
    by_text.setdefault(own, finite(entry.logprob))
    return by_text


def _chat_entry(position: Position, entry: TokenLogprobs, texts: TokenTexts) -> ChatTokenLogprobs:
    token: TopLogprob = {
        "token": position.text,
        "logprob": finite(entry.logprob),
        "bytes": list(_shown_bytes(position.text, texts.token_bytes(entry.token_id))),
    }
    ids = entry.top_ids
    top = zip(texts.shown_texts(ids), _finite(entry.top_logprobs), texts.byte_values(ids), strict=True)
    others: list[TopLogprob] = [{"token": text, "logprob": logprob, "bytes": values} for text, logprob, values in top]
    if entry.token_id in ids:
        others[ids.index(entry.token_id)] = token
    return {**token, "top_logprobs": others}


def _shown_bytes(text: str, token: bytes) -> bytes:
    """Return the bytes that a token adds to the reply: its own, unless it is hidden or lost its leading space."""
    if token.removeprefix(b" ") == text.encode():
        return text.encode()
    return b"" if not text and _is_whole(token) else token


def _is_whole(token: bytes) -> bool:
    """Return whether the bytes are complete characters, so that a token without a text is hidden, not incomplete."""
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def _finite(logprobs: list[float]) -> list[float]:
    return logprobs if not logprobs or min(logprobs) >= MIN_LOGPROB else list(map(finite, logprobs))


def finite(logprob: float) -> float:
    """Return the log probability, or the lowest that JSON has a number for."""
    return max(logprob, MIN_LOGPROB)
