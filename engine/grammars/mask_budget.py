"""Bound the time that the token masks of one step take; rows beyond the bound sit out the step.

A mask is a function of the row's tokens alone, so a row that sits out samples the same token one step later. Drafts get
what the masks of known tokens leave of the time.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Ids
from contextlib import contextmanager
from dataclasses import dataclass

from engine.scheduling.sequence import Ahead, Sequence

BUDGET_S = 0.02  # one mask at llguidance's limits takes 10 ms, a usual one 0.05 ms


class MaskBudget:
    """Decides which rows get their masks. The tenant whose masks have taken the least time is next; of its rows, the
    one whose last turn is longest ago. At least one row gets its mask in each step.
    """

    def __init__(self, budget_s: float = BUDGET_S, clock: Callable[[], float] = time.perf_counter) -> None:
        self._budget_s = budget_s
        self._clock = clock
        self._end_s = 0.0  # of this step's masks
        self._used_s: defaultdict[int, float] = defaultdict(float)  # by tenant
        self._num_turns = 0
        self._postponed: list[Sequence] = []

    def share_out(self, running: Iterable[Sequence]) -> None:
        """Compute masks ahead for the running rows that need one for their next token, and set `waits_for_mask` of
        those that sit out. Call it before each plan."""
        for sequence in self._postponed:
            sequence.waits_for_mask = False
        self._postponed = []
        waiting = [s for s in running if s.matcher is not None and s.num_to_schedule == 1]
        if not waiting:
            return
        due = self._by_tenant(waiting)
        self._end_s = self._clock() + self._budget_s
        while due:
            tenant = min(due, key=lambda tenant: (self._used_s[tenant], tenant))
            self._prepare(due[tenant].popleft())
            if not due[tenant]:
                del due[tenant]
            if not self.has_time():
                break
        for sequences in due.values():
            for sequence in sequences:
                self._postpone(sequence)

    def has_time(self) -> bool:
        """Return False once this step's masks have used up their time."""
        return self._clock() < self._end_s

    def guide(self, sequence: Sequence) -> "Guide | None":
        """Return the grammar of a row that share_out() has prepared, for guesses; None if there is no time for one."""
        assert sequence.matcher is not None
        ahead = sequence.matcher.look_ahead(sequence.token_ids, sequence.num_prompt_tokens) if self.has_time() else None
        return None if ahead is None else Guide(ahead, self, sequence.tenant)

    def prepare_draft(self, sequence: Sequence, draft: Ids[int]) -> int:
        """Compute the masks behind the draft's tokens. Return how many of them the grammar allows, and time."""
        assert sequence.matcher is not None
        ahead, count = sequence.matcher.look_ahead(sequence.token_ids, sequence.num_prompt_tokens), 0
        with self.charged_to(sequence.tenant):
            while ahead is not None and count < len(draft) and self.has_time():
                if ahead.mask_behind(draft[: count + 1]) is None:
                    break
                count += 1
        return count

    @contextmanager
    def charged_to(self, tenant: int) -> Iterator[None]:
        """Count the time inside this block as time of the tenant's masks."""
        start_s = self._clock()
        yield
        self._used_s[tenant] += self._clock() - start_s

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
        with self.charged_to(sequence.tenant):
            if not sequence.matcher.prepare(sequence.token_ids, sequence.num_prompt_tokens):
                self._postpone(sequence)
        self._num_turns += 1
        sequence.mask_turn = self._num_turns

    def _postpone(self, sequence: Sequence) -> None:
        sequence.waits_for_mask = True
        self._postponed.append(sequence)


@dataclass(frozen=True)
class Guide:
    """Grammar of one row at the end of its text, for guesses. Its work counts as the tenant's."""

    ahead: Ahead
    budget: MaskBudget
    tenant: int

    def num_allowed(self, token_ids: Ids[int]) -> int:
        """Return how many leading tokens the grammar allows."""
        with self.budget.charged_to(self.tenant):
            return self.ahead.num_allowed(token_ids)

    def forced_tokens(self, max_len: int) -> list[int]:
        """Return the usual tokens of the text that the grammar forces, at most `max_len`; [] if it forces none."""
        with self.budget.charged_to(self.tenant):
            return self.ahead.forced_tokens(max_len, self.budget.has_time)
