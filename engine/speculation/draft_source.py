"""Drafts of one request: the continuation of the place where its last tokens occurred before.

The places are those in its own prompt and completion, and in its prediction. No other request's tokens are read.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from engine.speculation.acceptance import AcceptanceRates, Evidence

MATCH_LENS = (2, 4, 8, 16)  # numbers of last tokens that are looked for
MAX_MATCHES = 4  # places that vote for the next token, the latest first
MAX_DRAFT = 16  # tokens
MAX_TOKEN_ID = 0x10FFFF  # the largest code of a character
MIN_LEFT = 8  # tokens left of a proposal that was right so far, from which on no other place is looked for


class Draft(NamedTuple):
    """Guessed tokens behind the last one of a request."""

    token_ids: tuple[int, ...]
    evidence: Evidence
    first_place: int  # of token_ids[0] in its proposal: so many tokens of it were right already


class Proposal(NamedTuple):
    """Guess of the tokens from `position` on."""

    position: int
    token_ids: tuple[int, ...]
    evidence: Evidence


class DraftSource:
    """Text of one request as a string with a character for each token id, because str.rfind is a fast search."""

    def __init__(
        self,
        num_prompt_tokens: int,
        rates: AcceptanceRates,
        prediction: Sequence[int] = (),
        end_token_ids: Collection[int] = (),
    ) -> None:
        """`rates` learns from every proposal, whether a step verifies it or not. A draft ends before a token of
        `end_token_ids`: nothing would be sampled behind it."""
        self._num_prompt_tokens = num_prompt_tokens
        self._rates = rates
        self._prediction = _text(prediction)
        self._end_token_ids = frozenset(end_token_ids)
        self._text = ""
        self._proposal: Proposal | None = None  # right so far, as far as its tokens are known

    def propose(self, token_ids: Sequence[int], max_len: int) -> Draft | None:
        """Return a guess of 1 to `max_len` tokens behind `token_ids`, the request's tokens so far; None without one."""
        self._extend(token_ids)
        if self._num_left() < MIN_LEFT:
            self._proposal = self._continue_prediction() or self._continue_match() or self._proposal
        if not self._num_left() or self._proposal is None:
            return None
        place = len(self._text) - self._proposal.position
        return Draft(self._proposal.token_ids[place : place + max_len], self._proposal.evidence, place)

    def _num_left(self) -> int:
        """Return how many tokens of the proposal are not known yet."""
        proposal = self._proposal
        return 0 if proposal is None else proposal.position + len(proposal.token_ids) - len(self._text)

    def _extend(self, token_ids: Sequence[int]) -> None:
        """Append the tokens that are new, and learn from them whether the proposal was right."""
        new = token_ids[len(self._text) :]
        for position, token_id in enumerate(new, len(self._text)):
            proposal = self._proposal
            if proposal is None:
                break
            place = position - proposal.position
            is_right = proposal.token_ids[place] == token_id
            self._rates.record(proposal.evidence, place, is_right=is_right)
            if not is_right or place + 1 == len(proposal.token_ids):
                self._proposal = None
        self._text += _text(new)

    def _continue_prediction(self) -> Proposal | None:
        """Continue the prediction while the whole completion equals its start."""
        completion = self._text[self._num_prompt_tokens :]
        if not completion or not self._prediction.startswith(completion):
            return None
        evidence = Evidence(MATCH_LENS[-1], is_unanimous=True, is_predicted=True)
        return self._proposal_of(self._prediction, len(completion), evidence)

    def _continue_match(self) -> Proposal | None:
        """Continue the longest match of the last tokens; of equally long ones, the prediction's."""
        text = self._text
        match_len = _longest_match(self._prediction, len(self._prediction), text)
        own_len = _longest_match(text, len(text) - 1, text)
        is_predicted = match_len >= own_len > 0 or match_len > 0 == own_len
        where, limit = (self._prediction, len(self._prediction)) if is_predicted else (text, len(text) - 1)
        match_len = match_len if is_predicted else own_len
        ends = [end for end in _match_ends(where, limit, text[len(text) - match_len :]) if end < len(where)]
        if not ends:
            return None
        [(winner, num_votes)] = Counter(where[end] for end in ends).most_common(1)  # of equal numbers, the latest's
        start = next(end for end in ends if where[end] == winner)
        return self._proposal_of(where, start, Evidence(match_len, num_votes == len(ends), is_predicted))

    def _proposal_of(self, where: str, start: int, evidence: Evidence) -> Proposal | None:
        """Propose the tokens from where[start] on. The request's own text is repeated beyond its end: of 5 6 7 5, the
        place of 6 gives 6 7 5 6 7 5 ..."""
        tail = where[start : start + MAX_DRAFT]
        if tail and where is self._text:
            tail = (tail * MAX_DRAFT)[:MAX_DRAFT]
        token_ids = list(map(ord, tail))
        num_kept = next((i for i, token_id in enumerate(token_ids) if token_id in self._end_token_ids), len(token_ids))
        return Proposal(len(self._text), tuple(token_ids[:num_kept]), evidence) if num_kept else None


def _text(token_ids: Sequence[int]) -> str:
    return "".join(map(chr, token_ids))


def _longest_match(where: str, limit: int, text: str) -> int:
    """Return the largest of MATCH_LENS with which the end of `text` occurs in where[:limit]; 0 if none does."""
    longest = 0
    for length in MATCH_LENS:
        if length > len(text) or where.rfind(text[-length:], 0, limit) < 0:
            break
        longest = length
    return longest


def _match_ends(where: str, limit: int, wanted: str) -> list[int]:
    """Return the ends of the last MAX_MATCHES occurrences of `wanted` in where[:limit], the last first."""
    ends: list[int] = []
    while wanted and len(ends) < MAX_MATCHES and (start := where.rfind(wanted, 0, limit)) >= 0:
        ends.append(start + len(wanted))
        limit = start + len(wanted) - 1
    return ends
