"""Time that each request has left, which bounds how long one without a draft waits for those of others."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

MAX_STRETCH = 3.0  # a request takes at most so many times as long as without drafts
MAX_LEFT = 64.0  # times of a step without drafts that a request has left at most, or has taken too much
FIRST_LEFT, FIRST_LEFT_S = 16.0, 0.25  # likewise at first, but no more than so many seconds


@dataclass
class Account:
    """Time that a request has left, and what was known when it was computed."""

    left_s: float
    num_tokens: int  # of the request
    num_drafted: int  # in the last step that it could draft in
    num_steps: int  # of the engine, as all that follow
    num_with_drafts: int
    spent_s: float  # by steps with drafts
    repaid_s: float  # by steps without


class HasAccount(Protocol):
    """Source of a request's drafts, which keeps its account."""

    account: Account | None


class TimeLeft:
    """Accounts of the requests that may draft: in steps with drafts a token gives its request MAX_STRETCH times the
    time of a step without, and each step takes its own. A step without drafts reduces what was taken too much.

    In a copied text some tokens are new. While one of many requests is at such a place, all others would wait for it,
    if no single step might take longer. Its own drafts have saved it time, so it can wait for a long step; a request
    whose text cannot be guessed cannot.
    """

    def __init__(self) -> None:
        self._num_steps = self._num_with_drafts = 0  # that were recorded
        self._spent_s = self._repaid_s = 0.0

    def begin(self, requests: Sequence[tuple[HasAccount, int]], plain_s: float) -> None:
        """Enter the last steps. `requests`: sources and numbers of tokens of those that may draft now; `plain_s`: of a
        step without drafts."""
        for source, num_tokens in requests:
            account = source.account
            if account is None:
                left_s = min(FIRST_LEFT * plain_s, FIRST_LEFT_S)
            else:
                left_s = self._left_s(account, num_tokens, plain_s)
            now = self._num_steps, self._num_with_drafts, self._spent_s, self._repaid_s
            source.account = Account(left_s, num_tokens, 0, *now)

    def _left_s(self, account: Account, num_tokens: int, plain_s: float) -> float:
        num_steps = self._num_steps - account.num_steps
        num_right = max(0, min(num_tokens - account.num_tokens - num_steps, account.num_drafted))
        num_given = self._num_with_drafts - account.num_with_drafts + num_right
        left_s = account.left_s + num_given * MAX_STRETCH * plain_s - (self._spent_s - account.spent_s)
        if left_s < 0:
            left_s = min(0.0, left_s + self._repaid_s - account.repaid_s)
        most_s = MAX_LEFT * plain_s
        return max(-most_s, min(left_s, most_s))

    def limit_s(self, waiting: Sequence[HasAccount], plain_s: float) -> float:
        """Return how long the step may take for these requests, which begin() has had and which have no draft."""
        return MAX_STRETCH * plain_s + min((source.account.left_s for source in waiting if source.account), default=inf)

    def give(self, drafts: Sequence[tuple[HasAccount, int]]) -> None:
        """Note sources and lengths of the drafts of the step's requests, which begin() has had."""
        for source, length in drafts:
            if source.account:
                source.account.num_drafted = length

    def record(self, seconds: float, plain_s: float, *, has_drafts: bool) -> None:
        """Note how long a step took."""
        self._num_steps += 1
        if has_drafts:
            self._num_with_drafts += 1
            self._spent_s += seconds
        else:
            self._repaid_s += (MAX_STRETCH - 1) * plain_s
