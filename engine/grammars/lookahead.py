"""Look ahead of a text in its grammar: masks behind guessed tokens, and the text that the grammar forces.

A copy of the text's parser consumes the guesses. So the parser itself needs no way back, and a guess that is beyond
llguidance's limits is only a guess less. Copies share the lexer and its limits (matcher.py).
"""

from collections.abc import Callable
from collections.abc import Sequence as Ids
from functools import lru_cache

import llguidance

from engine.errors import GrammarError
from engine.grammars.panics import panics_as_errors
from engine.grammars.usual_tokens import UsualTokens
from engine.types import Vocabulary

MAX_ALTERNATIVES = 32  # tokens of a mask that may be the starts of one text; more are certainly alternatives
MAX_FORCED_BYTES = 64
KEPT_MASKS, KEPT_TEXTS = 256, 1024  # whose forced token, or tokens, are kept for the texts of one vocabulary


class ForcedText:
    """Finder of text that a mask forces. Shared by the texts of one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokens = vocabulary.tokens
        self._special_ids = frozenset(vocabulary.special_ids)
        self._usual = UsualTokens(vocabulary)
        # texts under one schema force the same again and again
        self.longest = lru_cache(maxsize=KEPT_MASKS)(self._longest)
        self.split = lru_cache(maxsize=KEPT_TEXTS)(self._split)

    def _longest(self, mask: bytes) -> int | None:
        """Return the longest token of a mask if all others are its starts, so that the text goes on with it whatever is
        sampled; None if there are alternatives, or the text may end."""
        ids = _ids_of(mask)
        if not ids or not self._special_ids.isdisjoint(ids) or max(ids) >= len(self._tokens):
            return None
        longest = max(ids, key=lambda token_id: len(self._tokens[token_id]))
        text = self._tokens[longest]
        return longest if text and all(text.startswith(self._tokens[token_id]) for token_id in ids) else None

    def text(self, token_id: int) -> bytes:
        return self._tokens[token_id]

    def _split(self, text: bytes) -> tuple[int, ...]:
        """Return the usual tokens of a text."""
        return tuple(self._usual.split(text))


class Lookahead:
    """Masks behind guessed tokens that follow a text. When the text has a new token, a new one is needed."""

    def __init__(self, parser: llguidance.LLMatcher, mask: bytes, forced: ForcedText) -> None:
        """`parser`: at the end of the text; only copied here. `mask`: of the tokens that may follow the text."""
        self._parser = parser
        self._forced = forced
        self._copy: llguidance.LLMatcher | None = None  # behind the path; None: made when it is needed
        self._path: list[int] = []  # guessed tokens
        self._masks: list[bytes | None] = [mask]  # [i]: behind path[:i]; None: the parser gave up

    def mask_behind(self, token_ids: Ids[int]) -> bytes | None:
        """Return the mask of the tokens that may follow the text and these tokens; None if the grammar forbids one of
        them, or if its mask is too expensive."""
        num_known = _num_equal(self._path, token_ids)
        if num_known == len(token_ids):
            return self._masks[num_known]
        if num_known < len(self._path):  # the copy is behind other tokens
            self._copy = None
            del self._path[num_known:], self._masks[num_known + 1 :]
        for token_id in token_ids[num_known:]:
            mask = self._masks[-1]
            if mask is None or not _is_allowed(mask, token_id):
                return None
            self._masks.append(self._advance(token_id))
            self._path.append(token_id)
        return self._masks[-1]

    def num_allowed(self, token_ids: Ids[int]) -> int:
        """Return how many leading tokens the grammar allows. Computes no mask."""
        if not token_ids or self._masks[0] is None or not _is_allowed(self._masks[0], token_ids[0]):
            return 0
        try:
            with panics_as_errors():
                return self._parser.deep_copy().validate_tokens(list(token_ids))
        except GrammarError:
            return 0

    def forced_tokens(self, max_len: int, has_time: Callable[[], bool]) -> list[int]:
        """Return the usual tokens of the text that the grammar forces here, at most `max_len`; [] if the next byte is
        not forced. The search ends when `has_time` returns False."""
        text, walked, mask = b"", list[int](), self._masks[0]
        while mask is not None and (longest := self._forced.longest(mask)) is not None:
            text += self._forced.text(longest)
            if len(walked) == max_len or len(text) >= MAX_FORCED_BYTES or not has_time():
                return list(self._forced.split(text)[:-1][:max_len])  # the last token may be cut off
            walked.append(longest)
            mask = self.mask_behind(walked)
        return list(self._forced.split(text)[:max_len])

    def _advance(self, token_id: int) -> bytes | None:
        """Consume a guess and return the mask behind it; None if the parser gives up."""
        try:
            with panics_as_errors():
                if self._copy is None:
                    self._copy = self._parser.deep_copy()
                    if self._path:
                        self._copy.consume_tokens(self._path)
                self._copy.consume_tokens([token_id])
                mask = self._copy.compute_bitmask()
                return None if self._copy.is_error() else mask
        except GrammarError:
            return None


def _num_equal(first: Ids[int], second: Ids[int]) -> int:
    """Return the number of leading tokens that both have."""
    length = min(len(first), len(second))
    if tuple(first[:length]) == tuple(second[:length]):  # nearly always: each mask is asked for behind one more token
        return length
    return next(count for count in range(length) if first[count] != second[count])


def _is_allowed(mask: bytes, token_id: int) -> bool:
    return token_id < 8 * len(mask) and bool(mask[token_id // 8] >> token_id % 8 & 1)


def _ids_of(mask: bytes) -> list[int]:
    """Return the ids of a packed mask; [] if there are more than MAX_ALTERNATIVES."""
    bits, ids = int.from_bytes(mask, "little"), list[int]()
    if bits.bit_count() > MAX_ALTERNATIVES:
        return []
    while bits:
        lowest = bits & -bits
        ids.append(lowest.bit_length() - 1)
        bits ^= lowest
    return ids
