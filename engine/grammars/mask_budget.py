"""Bound the time that the token masks of one step take; rows beyond the bound sit out the step.

A mask is a function of the row's tokens alone, so a row that sits out samples the same token one step later.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable

from engine.scheduling.sequence import Sequence

BUDGET_S = 0.02  # one mask at llguidance's limits takes 10 ms, a usual one 0.05 ms


class MaskBudget:
    """Decides which rows get their masks. The tenant whose masks have taken the least time is next; of its rows, the
    one whose last turn is longest ago. At least one row gets its mask in each step.
    """

    def __init__(self, budget_s: float = BUDGET_S, clock: Callable[[], float] = time.perf_counter) -> None:
        self._budget_s = budget_s
        self._clock = clock
        self._used_s: defaultdict[int, float] = defaultdict(float)  # by tenant
        self._num_turns = 0
        self._postponed: list[Sequence] = []

    def share_out(self, running: Iterable[Sequence]) -> None:
        """Compute masks ahead for the running rows that need one for their next token, and set `waits_for_mask` of
        those that sit out. Call it before each plan."""
        for sequence in self._postponed:
            sequence.waits_for_mask = False
        self._postponed = []
        due = self._by_tenant(s for s in running if s.matcher is not None and s.num_to_schedule == 1)
        end_s = self._clock() + self._budget_s
        while due:
            tenant = min(due, key=lambda tenant: (self._used_s[tenant], tenant))
            self._prepare(due[tenant].popleft())
            if not due[tenant]:
                del due[tenant]
            if self._clock() >= end_s:
                break
        for sequences in due.values():
            for sequence in sequences:
                self._postpone(sequence)

    def wait(self, timeout_s: float) -> None:
        """Block until a row that sits out because of a long build can go on, or the timeout has passed."""
        for sequence in self._postponed:
            if sequence.matcher is not None:
                return sequence.matcher.wait(timeout_s)
        return None

    def _by_tenant(self, sequences: Iterable[Sequence]) -> dict[int, deque[Sequence]]:
        due: dict[int, deque[Sequence]] = {}
        for sequence in sorted(sequences, key=lambda sequence: (sequence.mask_turn, sequence.place)):
            due.setdefault(sequence.tenant, deque()).append(sequence)
        floor_s = min((self._used_s[tenant] for tenant in due if tenant in self._used_s), default=0.0)
        for tenant in due:  # a tenant that comes back does not get the time it was away
            self._used_s[tenant] = max(self._used_s[tenant], floor_s)
        return due

    def _prepare(self, sequence: Sequence) -> None:
        assert sequence.matcher is not None
        start_s = self._clock()
        if not sequence.matcher.prepare(sequence.token_ids, sequence.num_prompt_tokens):
            self._postpone(sequence)
        self._used_s[sequence.tenant] += self._clock() - start_s
        self._num_turns += 1
        sequence.mask_turn = self._num_turns

    def _postpone(self, sequence: Sequence) -> None:
        sequence.waits_for_mask = True
        self._postponed.append(sequence)
