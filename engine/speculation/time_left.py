"""Time that each request has left, which bounds how long one without a draft waits for those of others."""

from collections.abc import Sequence

from engine.speculation.draft_source import DraftSource

MAX_STRETCH = 3.0  # a request takes at most so many times as long as without drafts
MAX_LEFT = 64.0  # times of a step without drafts that a request has left at most
FIRST_LEFT, FIRST_LEFT_S = 16.0, 0.25  # likewise at first, but no more than so many seconds


class TimeLeft:
    """Account of each request that may draft: a token gives it MAX_STRETCH times the time of a step without drafts, and
    each step takes its own.

    In a copied text some tokens are new. While one of many requests is at such a place, all others would wait for it,
    if no single step might take longer. Its own drafts have saved it time, so it can wait for a long step; a request
    whose text cannot be guessed cannot.
    """

    def __init__(self) -> None:
        self._left_s: dict[DraftSource, float] = {}
        self._given: dict[
            DraftSource, tuple[int, int]
        ] = {}  # tokens of the request, and of its draft, in the last step
        self._step_s = 0.0  # of the last step; 0: it had no drafts, or was not measured

    def begin(self, requests: Sequence[tuple[DraftSource, int]], plain_s: float) -> None:
        """Enter the last step. `requests`: sources and numbers of tokens of those that may draft now; `plain_s`: of a
        step without drafts."""
        token_s, most_s, left_s = MAX_STRETCH * plain_s, MAX_LEFT * plain_s, {}
        first_s = min(FIRST_LEFT * plain_s, FIRST_LEFT_S)
        for source, num_tokens in requests:
            new_s = self._left_s.get(source, first_s)
            if self._step_s and source in self._given:
                before, drafted = self._given[source]
                num_right = max(0, min(num_tokens - before - 1, drafted))
                new_s += (1 + num_right) * token_s - self._step_s
            left_s[source] = max(0.0, min(new_s, most_s))
        self._left_s, self._step_s = left_s, 0.0

    def limit_s(self, waiting: Sequence[DraftSource], plain_s: float) -> float:
        """Return how long the step may take for these requests, which have no draft; at least one."""
        return MAX_STRETCH * plain_s + min(self._left_s[source] for source in waiting)

    def give(self, drafts: Sequence[tuple[DraftSource, int, int]]) -> None:
        """Note sources, numbers of tokens and lengths of drafts of the step's requests."""
        self._given = {source: (num_tokens, length) for source, num_tokens, length in drafts}

    def record(self, seconds: float) -> None:
        """Note how long the step took, which has drafts."""
        self._step_s = seconds
