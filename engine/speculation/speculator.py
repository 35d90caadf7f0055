"""Decide how many tokens each request drafts, by what a step of more rows costs and what its drafts are worth.

Drafts change no token: a drafted token is kept only if the model samples the same one. So everything here may depend on
measured times.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import NamedTuple, Protocol

from engine.speculation.acceptance import AcceptanceRates
from engine.speculation.draft_source import DraftSource, Grammar
from engine.speculation.draft_times import DraftTimes
from engine.speculation.ledger import Ledger
from engine.speculation.row_times import RowTimes, TimeShape, last_in_group
from engine.speculation.time_left import MAX_STRETCH, TimeLeft
from engine.types import Request

MIN_GAIN = 1.05  # expected tokens per second with drafts, against those without
MAX_DRAFTED = 256  # tokens of all requests in one step
MAX_SHARED_STRETCH = 1.5  # where several tenants share the steps, even if every request has a draft
MAX_REQUESTS = 64  # that decode; with more, a row costs arithmetic, and no guess is worth as much as a sure token
QUIET_STEPS = 2  # without a search, after so many that searched: the first one rebuilds what drafts changed
SEARCHING_STEPS = 62
MAX_OUTLIER = 2.0  # a step counts as at most so many times its estimate in the account of saved time


def max_rows(max_requests: int) -> int:
    """Return how many rows a step with drafts has at most, in an engine that runs so many requests at once."""
    return min(max_requests, MAX_REQUESTS) + MAX_DRAFTED


class Candidate(NamedTuple):
    """A request that decodes in the next step and may draft."""

    source: DraftSource
    token_ids: Sequence[int]  # so far
    max_len: int  # of its draft
    grammar: Grammar | None = None  # None: the request has none


class StepTime(NamedTuple):
    """A step in which every request decoded."""

    num_requests: int
    num_rows: int  # with those of drafts
    num_accepted: int  # drafted tokens that were right
    seconds: float


class Drafter(Protocol):
    """Part of a Speculator that the scheduler uses, in each step without a prompt: may_draft(), choose() if that
    returns True, and record() when the step is computed, if `is_measuring`."""

    is_measuring: bool

    def source(self, request: Request, end_token_ids: Collection[int]) -> DraftSource: ...
    def may_draft(self, num_rows: int) -> bool: ...
    def choose(
        self, candidates: Sequence[Candidate], num_rows: int, max_drafted: int, *, is_shared: bool
    ) -> list[tuple[int, ...]]: ...
    def record(self, step: StepTime) -> None: ...


class Speculator:
    """Learns acceptance and step times while the engine runs, and chooses the drafts of each step.

    The reference is the time of quiet steps, in which no text was searched, behind quiet steps. What searching texts,
    computing drafts and going back to steps without any costs more than that is in the account as a loss.
    """

    def __init__(self, shape: TimeShape) -> None:
        """`shape`: the relative time of a step by its rows, until it is measured."""
        self._rates = AcceptanceRates()
        self._quiet_times = RowTimes(shape)
        self._draft_times = DraftTimes(shape)
        self._ledger = Ledger()
        self._time_left = TimeLeft()
        self._is_searching = False  # in the present step
        self._num_quiet = 0  # steps in a row
        self._num_searching = 0  # steps since the last QUIET_STEPS quiet ones
        self.is_measuring = True  # False in a pause, in which a step costs next to nothing here
        self._num_idle = 0  # steps left of a pause
        self._num_skipped = 0  # steps of a pause that the account does not have yet
        self._has_new_text = False  # since the pause was last entered there

    def source(self, request: Request, end_token_ids: Collection[int]) -> DraftSource:
        """Return the source of a request's drafts, none of which has a token that would end it."""
        self._num_idle, self._has_new_text = 0, True
        return DraftSource(len(request.prompt_token_ids), self._rates, request.prediction_token_ids, end_token_ids)

    def may_draft(self, num_rows: int) -> bool:
        """Return whether the next step, of `num_rows` without drafts (at least one), is one that searches texts."""
        if self._num_skipped and not self._num_idle:
            self._wake_up(num_rows)
        if self._num_idle:
            self._num_idle -= 1
            self._num_skipped += 1
            self.is_measuring = self._is_searching = False
            return False
        self.is_measuring = True
        self._is_searching = (
            num_rows <= MAX_REQUESTS
            and self._ledger.allows_drafts
            and self._num_searching < SEARCHING_STEPS
            and self._quiet_times.is_measured(num_rows)
        )
        return self._is_searching

    def _wake_up(self, num_rows: int) -> None:
        """Enter the steps of a pause into the account. The next ones are quiet: nothing was measured for long."""
        plain_s = self._quiet_times.predict(num_rows)
        self._ledger.skip(self._num_skipped, plain_s)
        if self._has_new_text:
            self._ledger.end_pause()
        self._draft_times.fade(plain_s, num_rows, self._num_skipped)
        self._num_skipped, self._num_idle, self._has_new_text = 0, self._ledger.num_left, False
        self._num_quiet, self._num_searching = 0, SEARCHING_STEPS

    def record(self, step: StepTime) -> None:
        """Learn from a step. Its drafts saved the time in which quiet steps generate the accepted tokens."""
        if step.seconds <= 0.0:
            return  # shorter than the clock's resolution
        if self._is_searching:
            self._record_search(step)
        else:
            self._record_quiet(step)
        self._num_idle = self._ledger.num_left

    def _record_search(self, step: StepTime) -> None:
        self._num_quiet = 0
        self._num_searching += 1
        plain_s = self._quiet_times.predict(step.num_requests)
        limit_s = plain_s * MAX_OUTLIER
        if step.num_rows > step.num_requests:
            rows = step.num_requests, step.num_rows
            limit_s = self._draft_times.predict(plain_s, *rows) * MAX_OUTLIER
            self._draft_times.record(plain_s, *rows, step.seconds)
        self._time_left.record(step.seconds, plain_s, has_drafts=step.num_rows > step.num_requests)
        gained_s = plain_s * (1 + step.num_accepted / step.num_requests)
        self._ledger.record(step.seconds, gained_s - min(step.seconds, limit_s))

    def _record_quiet(self, step: StepTime) -> None:
        self._num_quiet += 1
        if self._num_quiet >= QUIET_STEPS:
            self._num_searching = 0
            self._quiet_times.record(step.num_rows, step.seconds)
            self._time_left.record(step.seconds, self._quiet_times.predict(step.num_rows), has_drafts=False)
            self._ledger.record(step.seconds)
        elif self._quiet_times.is_measured(step.num_rows):
            plain_s = self._quiet_times.predict(step.num_rows)
            self._time_left.record(step.seconds, plain_s, has_drafts=False)
            self._ledger.record(step.seconds, plain_s - min(step.seconds, plain_s * MAX_OUTLIER))

    def choose(
        self, candidates: Sequence[Candidate], num_rows: int, max_drafted: int, *, is_shared: bool = False
    ) -> list[tuple[int, ...]]:
        """Return the draft of each candidate, in order; empty where none pays.

        `num_rows`: of the step without drafts, one for each request that decodes. `max_drafted`: tokens of all drafts.
        `is_shared`: True if several tenants are active, whose first tokens wait for the end of the step.
        """
        plain_s = self._quiet_times.predict(num_rows)
        self._time_left.begin([(source, len(token_ids)) for source, token_ids, _, _ in candidates], plain_s)
        drafts = [source.propose(token_ids, max_len, grammar) for source, token_ids, max_len, grammar in candidates]
        if not any(drafts):
            return [()] * len(drafts)
        chances = self._worth_now([draft.chances if draft else () for draft in drafts], num_rows, plain_s)
        sources = [candidate.source for candidate in candidates]
        max_drafted = min(max_drafted, MAX_DRAFTED)
        if is_shared or len(drafts) < num_rows:
            limit_s = (MAX_SHARED_STRETCH if is_shared else MAX_STRETCH) * plain_s
            lengths = self._lengths(chances, num_rows, plain_s, max_drafted, limit_s)
        else:
            waiting = [source for source, worth in zip(sources, chances, strict=True) if not worth]
            limit_s = self._time_left.limit_s(waiting, plain_s)
            lengths = self._lengths(chances, num_rows, plain_s, max_drafted, limit_s)
            if lengths.count(0) > len(waiting) and any(lengths):  # those that got none wait, too
                waiting = [source for source, length in zip(sources, lengths, strict=True) if not length]
                limit_s = self._time_left.limit_s(waiting, plain_s)
                lengths = self._lengths(chances, num_rows, plain_s, max_drafted, limit_s)
        if any(chances) and not any(lengths) and not is_shared:
            self._draft_times.fade(plain_s, num_rows)
        self._time_left.give(list(zip(sources, lengths, strict=True)))
        return [draft.token_ids[:length] if draft else () for draft, length in zip(drafts, lengths, strict=True)]

    def _lengths(
        self, chances: Sequence[Sequence[float]], num_rows: int, plain_s: float, max_drafted: int, limit_s: float
    ) -> list[int]:
        """Return how many tokens of each draft the best step has."""
        ordered = sorted(chain.from_iterable(chances), reverse=True)[:max_drafted]
        return _lengths_of(chances, ordered[: self._best_count(ordered, num_rows, plain_s, limit_s)])

    def _worth_now(self, chances: Sequence[Sequence[float]], num_rows: int, plain_s: float) -> list[Sequence[float]]:
        """Return the chances of those first tokens of each draft that need not wait for the next step.

        A step computes the first token of a guess anyway, and so tells whether the next ones are worth their rows. With
        chance p of the first one, waiting saves (1 - p) of the time of the rows and costs p of a token's time.
        """
        extra_s = self._draft_times.of_rows(plain_s, num_rows, max(map(len, chances)))
        token_s = plain_s / num_rows
        return [c and c[: bisect_right(extra_s, token_s * c[0] / (1 - c[0]))] for c in chances]

    def _best_count(self, chances: Sequence[float], num_rows: int, plain_s: float, limit_s: float) -> int:
        """Return how many drafted tokens the best step has, the likeliest first; 0 if none pays.

        A first row may cost more than it gains where many gain (alone, each of the first rows reads other experts): a
        number of each size of steps is tried, the largest. `limit_s`: how long the step may take.
        """
        best_count, best_rate = 0, MIN_GAIN * num_rows / plain_s
        expected = list(accumulate(chances, initial=float(num_rows)))
        counts = _counts_to_try(num_rows, len(chances))
        for count, seconds in zip(counts, self._draft_times.predict_each(plain_s, num_rows, counts), strict=True):
            if seconds > limit_s:
                break
            if expected[count] > best_rate * seconds:
                best_count, best_rate = count, expected[count] / seconds
        return best_count


@lru_cache(maxsize=1024)
def _counts_to_try(num_rows: int, max_drafted: int) -> tuple[int, ...]:
    """Return the largest number of drafted tokens of each size of steps, up to `max_drafted`."""
    counts, count = [], 0
    while count < max_drafted:
        count = min(last_in_group(num_rows + count + 1) - num_rows, max_drafted)
        counts.append(count)
    return tuple(counts)


def _lengths_of(chances: Sequence[Sequence[float]], kept: Sequence[float]) -> list[int]:
    """Return how many tokens of each draft are kept. `kept`: their chances, descending, as are those of each draft."""
    if not kept:
        return [0] * len(chances)
    least = kept[-1]
    num_equal = len(kept) - bisect_left(kept, -least, key=float.__neg__)
    lengths = []
    for of_draft in chances:
        above = bisect_left(of_draft, -least, key=float.__neg__)
        equal = min(num_equal, bisect_right(of_draft, -least, above, key=float.__neg__) - above)
        lengths.append(above + equal)
        num_equal -= equal
    return lengths
