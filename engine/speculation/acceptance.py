"""Acceptance of drafts: how many tokens of one were right, and how likely the next one's tokens are."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

PRIOR_ACCEPTED, PRIOR_REJECTED = 0.25, 0.75  # observations that every rate starts with: a guess must prove itself
MAX_OBSERVATIONS = 200.0  # a rate's counts are halved at this sum, so that it follows the text that is generated now
PLACES = (0, 1, 2, 4, 8)  # first places of a draft that share a rate: 0, 1, 2..3, 4..7, 8..
SHARED = [bisect_right(PLACES, place) - 1 for place in range(PLACES[-1] + 1)]  # index in PLACES, of each place


class Evidence(NamedTuple):
    """Evidence for a draft; drafts of equal evidence share their rates."""

    match_len: int  # tokens before the draft that equal those before its source
    is_unanimous: bool  # all found matches continue with the same token
    is_predicted: bool  # it comes from the request's prediction
    is_resumed: bool = False  # behind a change of a text that was copied so far


FORCED = Evidence(0, is_unanimous=True, is_predicted=False)  # the grammar forces the text, but not its tokens
LAST_FORCED = Evidence(0, is_unanimous=False, is_predicted=False)  # likewise: the last of these tokens may be longer


class Ground(NamedTuple):
    """Ground for one drafted token: its evidence, and its place in the guess (0: first)."""

    evidence: Evidence
    place: int


def num_accepted(draft: Sequence[int], sampled: Sequence[int]) -> int:
    """Return how many leading tokens of the draft equal the sampled ones.

    `sampled` has the token behind the last known one, then those behind each drafted token: draft (5, 6, 7) and
    sampled (5, 6, 8, 9) give 2, because 9 was sampled behind a token that the request does not have.
    """
    count = 0
    while count < len(draft) and draft[count] == sampled[count]:
        count += 1
    return count


class AcceptanceRates:
    """Learns the probability that a drafted token is right, given that all before it in its draft were."""

    def __init__(self) -> None:
        self._counts: dict[Evidence, list[list[float]]] = {}  # by the index of the places that share a rate

    def record(self, evidence: Evidence, place: int, *, is_right: bool) -> None:
        """Learn from the token at `place` (0: first) of a draft."""
        counts = self._counts_of(evidence)[SHARED[min(place, PLACES[-1])]]
        counts[not is_right] += 1.0
        if counts[0] + counts[1] > MAX_OBSERVATIONS:
            counts[:] = [max(count / 2, PRIOR_ACCEPTED) for count in counts]

    def _counts_of(self, evidence: Evidence) -> list[list[float]]:
        counts = self._counts.get(evidence)
        if counts is None:
            counts = self._counts[evidence] = [[PRIOR_ACCEPTED, PRIOR_REJECTED] for _ in PLACES]
        return counts

    def rate(self, evidence: Evidence, place: int) -> float:
        """Return the estimated probability for the token at `place` of a draft."""
        accepted, rejected = self._counts_of(evidence)[SHARED[min(place, PLACES[-1])]]
        return accepted / (accepted + rejected)

    def chances(self, grounds: Sequence[Ground]) -> tuple[float, ...]:
        """Return the estimated probability of each token of a draft that it and all before it are right; descending."""
        right, chances, known = 1.0, [], None
        for evidence, place in grounds:
            if evidence is not known:
                known, rates = evidence, self._rates_by_place(evidence)
            right *= rates[min(place, PLACES[-1])]
            chances.append(right)
        return tuple(chances)

    def _rates_by_place(self, evidence: Evidence) -> list[float]:
        """Return the rates of the places 0 .. PLACES[-1]."""
        rates = [accepted / (accepted + rejected) for accepted, rejected in self._counts_of(evidence)]
        return [rates[index] for index in SHARED]
