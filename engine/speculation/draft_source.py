"""Drafts of one request: the continuation of the place where its last tokens occurred before, or text that its grammar
forces.

The places are those in its own prompt and completion, and in its prediction. No other request's tokens are read.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import NamedTuple, Protocol

from engine.speculation.acceptance import FORCED, LAST_FORCED, AcceptanceRates, Evidence, Ground
from engine.speculation.time_left import Account

MATCH_LENS = (2, 4, 8, 16)  # numbers of last tokens that are looked for
MAX_MATCHES = 4  # places that vote for the next token, the latest first
MAX_DRAFT = 48  # tokens
MAX_FORCED = 16  # tokens of a guess of forced text, each of which takes a mask
MAX_TOKEN_ID = 0x10FFFF  # the largest code of a character
MIN_LEFT = 16  # tokens left of a proposal that was right so far, from which on no other place is looked for
MIN_RUN = 4  # guessed tokens in a row that were right, before a wrong one counts as a change of a copied text
MAX_CHANGED = 64  # tokens of a change, in the text and in its source, behind which the copy may go on
MAX_REPLACED = 4  # likewise, where one equal token or none says that it goes on
MAX_SKIPPED = 7  # tokens that are not guessed after guesses that failed at once: 0, 1, 3, 7


class Grammar(Protocol):
    """Grammar of a request, at the end of its text so far."""

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        """Return how many leading tokens may follow the text."""
        ...

    def forced_tokens(self, max_len: int) -> list[int]:
        """Return the usual tokens of the text that must follow, at most `max_len`; [] if none must."""
        ...


class Draft(NamedTuple):
    """Guessed tokens behind the last one of a request."""

    token_ids: tuple[int, ...]
    chances: tuple[float, ...]  # of each token: that it and all before it are right


class Place(NamedTuple):
    """Place of a token in the request's prediction or in its own text."""

    is_predicted: bool
    start: int


class Change(NamedTuple):
    """Change of a text that was copied so far: its first token, in the text and in the source."""

    position: int
    source: Place


class Proposal(NamedTuple):
    """Guess of the tokens from `position` on, with the ground for each."""

    position: int
    token_ids: tuple[int, ...]
    grounds: tuple[Ground, ...]
    source: Place | None = None  # of the first token; None: the grammar forces them

    def cut_to(self, length: int) -> "Proposal":
        """Return its first `length` tokens."""
        return self._replace(token_ids=self.token_ids[:length], grounds=self.grounds[:length])


class DraftSource:
    """Text of one request as a string with a character for each token id, because str.rfind is a fast search."""

    account: Account | None = None  # of the time that the request has left

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
        self._change: Change | None = None  # behind which the copy has not been found again
        self._num_right = 0  # guessed tokens in a row
        self._num_failures = 0  # searches in a row that found nothing, or nothing right
        self._search_len = 0  # length of the text from which on a search may find something

    def propose(self, token_ids: Sequence[int], max_len: int, grammar: Grammar | None = None) -> Draft | None:
        """Return a guess of 1 to `max_len` tokens behind `token_ids`, the request's tokens so far; None without one.

        `grammar`: of a request that has one; the draft has only tokens that it allows.
        """
        if self._proposal is None and self._change is None and len(token_ids) < self._search_len:
            return None
        self._extend(token_ids)
        if self._num_left() < (MIN_LEFT if grammar is None else 1) and self._may_search:
            self._search(grammar)
        if not self._num_left() or self._proposal is None:
            return None
        first = len(self._text) - self._proposal.position
        left = slice(first, first + max_len)
        return Draft(self._proposal.token_ids[left], self._rates.chances(self._proposal.grounds[left]))

    @property
    def _may_search(self) -> bool:
        return self._change is not None or len(self._text) >= self._search_len

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
            self._rates.record(*proposal.grounds[place], is_right=is_right)
            if is_right:
                self._note_right()
            else:
                self._note_wrong(proposal, place)
            if not is_right or place + 1 == len(proposal.token_ids):
                self._proposal = None
        self._text += _text(new)

    def _note_right(self) -> None:
        self._num_failures = 0
        self._num_right += 1
        if self._num_right == MIN_RUN:
            self._change = None

    def _note_wrong(self, proposal: Proposal, place: int) -> None:
        """Note a change of a copied text, or back off from guesses that fail at once."""
        is_copy = proposal.grounds[0].evidence.is_resumed
        if proposal.source is not None and (self._num_right >= MIN_RUN or (is_copy and place > 0)):
            source = proposal.source._replace(start=proposal.source.start + place)
            self._change = Change(proposal.position + place, source)
        elif place == 0 and not is_copy:
            self._back_off(proposal.position)
        self._num_right = 0

    def _search(self, grammar: Grammar | None) -> None:
        """Look for a proposal behind the text; without a new one the present one stays."""
        is_due, found = len(self._text) >= self._search_len, None
        if is_due:
            found = self._continue_prediction() or self._continue_match()
        if self._change is not None and self._proposal is None:
            found = self._continue_copy(self._change, found)
        if grammar is not None:
            found = self._within(grammar, found)
        if found is not None:
            self._proposal = found
        elif self._proposal is None and is_due:
            self._back_off(len(self._text))

    def _back_off(self, length: int) -> None:
        """Count a failure at a text of this length: the more in a row, the later the next search."""
        num_skipped = min((1 << self._num_failures) - 1, MAX_SKIPPED)
        self._num_failures = min(self._num_failures + 1, MAX_SKIPPED)
        self._search_len = length + 1 + num_skipped

    def _within(self, grammar: Grammar, found: Proposal | None) -> Proposal | None:
        """Return the part of a proposal that the grammar allows, or the text that it forces, whichever is likelier at
        first; of the same tokens, the longer."""
        forced = self._forced(grammar)
        num_allowed = grammar.num_allowed(found.token_ids) if found else 0
        if found is None or not num_allowed:
            return forced
        allowed = found.cut_to(num_allowed)
        if forced is None:
            return allowed
        if forced.token_ids[0] == allowed.token_ids[0]:
            return max(allowed, forced, key=lambda proposal: len(proposal.token_ids))
        return max(allowed, forced, key=lambda proposal: self._rates.rate(*proposal.grounds[0]))

    def _forced(self, grammar: Grammar) -> Proposal | None:
        token_ids = self._until_end(grammar.forced_tokens(MAX_FORCED))
        if not token_ids:
            return None
        last = len(token_ids) - 1
        grounds = tuple(Ground(LAST_FORCED if i == last else FORCED, i) for i in range(len(token_ids)))
        return Proposal(len(self._text), token_ids, grounds)

    def _continue_prediction(self) -> Proposal | None:
        """Continue the prediction while the whole completion equals its start."""
        completion = self._text[self._num_prompt_tokens :] if self._prediction else ""
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
        votes = [where[end] for end in ends]
        winner = max(votes, key=votes.count)  # of equal numbers, the latest's
        start = ends[votes.index(winner)]
        return self._proposal_of(where, start, Evidence(match_len, votes.count(winner) == len(ends), is_predicted))

    def _continue_copy(self, change: Change, found: Proposal | None) -> Proposal | None:
        """Continue a copy behind a change of its text, where the last two tokens occur first behind the changed one.

        Else return `found`. Without that, continue a copy behind a change of a few tokens where the last one occurs,
        or behind as many tokens as the text has there.
        """
        num_changed = len(self._text) - change.position
        if num_changed > MAX_CHANGED:
            self._change = None
            return found
        if (copy := self._copy_from(change.source, 2, MAX_CHANGED)) is not None:
            return copy
        if found is not None or num_changed > MAX_REPLACED:
            return found
        return self._copy_from(change.source, 1, MAX_REPLACED) or self._copy_from(change.source, 0, num_changed)

    def _copy_from(self, source: Place, match_len: int, max_distance: int) -> Proposal | None:
        """Continue the first place behind `source` whose tokens before it are the last `match_len` ones; without any,
        the place `max_distance` behind it."""
        where = self._prediction if source.is_predicted else self._text
        start = source.start + max_distance
        if match_len:
            end = min(start, len(where) - 1)
            start = where.find(self._text[-match_len:], max(0, source.start + 1 - match_len), end) + match_len
        if not match_len <= start < len(where):
            return None
        return self._proposal_of(where, start, Evidence(match_len, True, source.is_predicted, is_resumed=True))

    def _proposal_of(self, where: str, start: int, evidence: Evidence) -> Proposal | None:
        """Propose the tokens from where[start] on. The request's own text is repeated beyond its end: of 5 6 7 5, the
        place of 6 gives 6 7 5 6 7 5 ..."""
        tail = where[start : start + MAX_DRAFT]
        if tail and where is self._text:
            tail = (tail * MAX_DRAFT)[:MAX_DRAFT]
        token_ids = self._until_end(list(map(ord, tail)))
        grounds = _grounds_of(evidence, len(token_ids))
        return Proposal(len(self._text), token_ids, grounds, Place(evidence.is_predicted, start)) if token_ids else None

    def _until_end(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens before the first one that would end the request."""
        if self._end_token_ids.isdisjoint(token_ids):
            return tuple(token_ids)
        return tuple(takewhile(lambda token_id: token_id not in self._end_token_ids, token_ids))


@lru_cache(maxsize=1024)
def _grounds_of(evidence: Evidence, length: int) -> tuple[Ground, ...]:
    return tuple(Ground(evidence, place) for place in range(length))


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
