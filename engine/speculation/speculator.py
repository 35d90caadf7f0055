"""Decide how many tokens each request drafts, by what a step of more rows costs and what its drafts are worth.

Drafts change no token: a drafted token is kept only if the model samples the same one. So everything here may depend on
measured times.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from engine.speculation.acceptance import AcceptanceRates
from engine.speculation.draft_source import Draft, DraftSource
from engine.speculation.ledger import Ledger
from engine.speculation.row_times import RowTimes, TimeShape
from engine.types import Request

MIN_GAIN = 1.05  # expected tokens per second with drafts, against those without
MAX_DRAFTED = 64  # tokens of all requests in one step
MAX_REQUESTS = 64  # that decode; with more, a row costs arithmetic, and no guess is worth as much as a sure token
STEPS_PER_PLAIN = 32  # one of so many steps has no drafts, so that the time without them stays known


class Candidate(NamedTuple):
    """A request that decodes in the next step and may draft."""

    source: DraftSource
    token_ids: Sequence[int]  # so far
    max_len: int  # of its draft


class StepTime(NamedTuple):
    """A step in which every request decoded."""

    num_requests: int
    num_rows: int  # with those of drafts
    num_accepted: int  # drafted tokens that were right
    seconds: float


class Drafter(Protocol):
    """Part of a Speculator that the scheduler uses."""

    def source(self, request: Request, end_token_ids: Collection[int]) -> DraftSource: ...
    def choose(self, candidates: Sequence[Candidate], num_rows: int, max_drafted: int) -> list[tuple[int, ...]]: ...
    def record(self, step: StepTime) -> None: ...


class Speculator:
    """Learns acceptance and step times while the engine runs, and chooses the drafts of each step."""

    def __init__(self, shape: TimeShape) -> None:
        """`shape`: the relative time of a step by its rows, until it is measured."""
        self._rates = AcceptanceRates()
        self._times = RowTimes(shape)
        self._ledger = Ledger()
        self._num_drafted_steps = 0  # since the last one without drafts

    def source(self, request: Request, end_token_ids: Collection[int]) -> DraftSource:
        """Return the source of a request's drafts, none of which has a token that would end it."""
        return DraftSource(len(request.prompt_token_ids), self._rates, request.prediction_token_ids, end_token_ids)

    def record(self, step: StepTime) -> None:
        """Learn from a step. Its drafts saved the time in which steps without drafts generate the accepted tokens."""
        plain_rows = step.num_requests
        self._times.record(step.num_rows, step.seconds)
        if step.num_rows == plain_rows:
            self._num_drafted_steps = 0
            self._ledger.record(step.seconds)
            return
        self._num_drafted_steps += 1
        plain_s = self._times.predict(plain_rows)
        saved_s = plain_s * (1 + step.num_accepted / plain_rows) - step.seconds
        self._ledger.record(step.seconds, saved_s)

    def choose(self, candidates: Sequence[Candidate], num_rows: int, max_drafted: int) -> list[tuple[int, ...]]:
        """Return the draft of each candidate, in order; empty where none pays.

        `num_rows`: of the step without drafts, one for each request that decodes. `max_drafted`: tokens of all drafts.
        """
        if num_rows > MAX_REQUESTS:
            return [()] * len(candidates)
        drafts = [candidate.source.propose(candidate.token_ids, candidate.max_len) for candidate in candidates]
        lengths = [0] * len(drafts)
        is_turn = self._num_drafted_steps < STEPS_PER_PLAIN - 1
        if is_turn and self._ledger.allows_drafts and self._times.is_measured(num_rows):
            for index in self._owners(drafts, num_rows, min(max_drafted, MAX_DRAFTED)):
                lengths[index] += 1
        return [draft.token_ids[:length] if draft else () for draft, length in zip(drafts, lengths, strict=True)]

    def _owners(self, drafts: Sequence[Draft | None], num_rows: int, max_drafted: int) -> list[int]:
        """Return the index of the draft that each drafted token of the best step belongs to.

        The likeliest tokens come first, so that the best step has a number of them from the front. A first row may cost
        more than it gains where many gain (alone, each of the first rows reads other experts): all numbers are tried.
        """
        ordered = sorted(
            (-probability, index)
            for index, draft in enumerate(drafts)
            if draft
            for probability in self._probabilities(draft)
        )[:max_drafted]
        best_count, best_rate = 0, MIN_GAIN * num_rows / self._times.predict(num_rows)
        expected = float(num_rows)
        for count, (negative, _) in enumerate(ordered, 1):
            expected -= negative
            rate = expected / self._times.predict(num_rows + count)
            if rate > best_rate:
                best_count, best_rate = count, rate
        return [index for _, index in ordered[:best_count]]

    def _probabilities(self, draft: Draft) -> list[float]:
        """Return the probability of each token that it and all before it are right; descending."""
        right, probabilities = 1.0, []
        for place in range(draft.first_place, draft.first_place + len(draft.token_ids)):
            right *= self._rates.rate(draft.evidence, place)
            probabilities.append(right)
        return probabilities
