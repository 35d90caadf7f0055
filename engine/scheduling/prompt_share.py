"""Bound the time that prompts take of a step while several tenants are active.

A request that arrives during a step waits for its end. Alone, a tenant waits for its own work, and long steps compute
its prompts with the least overhead. With several tenants each would wait for the others' prompts, so that each tenant's
prompts get a share of a bounded time, measured in seconds of this machine. Chunking changes no bits.
"""

from collections import defaultdict
from math import inf

from engine.scheduling.fairness import FairShare
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_times import StepTimes, StepWork

PROMPT_S = 0.02  # of a step for the prompts of all tenants; more if what decodes takes longer than this
MIN_POSITIONS = 16  # a tenant's first chunk of a step is not cut shorter: tiny steps cost more than they spare
MIN_POSITION_S = 1e-9  # estimates of less, such as 0 before the first step, bound nothing
UNBOUNDED = 1 << 62
ACTIVE_S = 1.0  # a tenant counts as active so long after its last request


class PromptShare:
    """Time that is left of one step for the prompts of each tenant."""

    def __init__(self, times: StepTimes, share_s: float = inf, min_positions: int = MIN_POSITIONS) -> None:
        """`share_s`: seconds for each tenant. `min_positions`: its first chunk may be so long whatever it takes."""
        self._times = times
        self._share_s = share_s
        self._min_positions = min_positions
        self._used_s: defaultdict[int, float] = defaultdict(float)

    @property
    def is_bounded(self) -> bool:
        """True while several tenants are active."""
        return self._share_s < inf

    def has_room(self, sequence: Sequence) -> bool:
        """Return whether the sequence may have a chunk in this step."""
        return self.max_positions(sequence) >= 1

    def max_positions(self, sequence: Sequence) -> int:
        """Return how long the sequence's next chunk may be; 0 if its tenant's share is used up."""
        if not self.is_bounded:
            return UNBOUNDED
        position_s = self._times.position_s(is_scored=is_scored(sequence))
        left_s = self._share_s - self._used_s.get(sequence.tenant, 0.0) - self._times.chunk_s
        length = int(left_s / max(position_s, MIN_POSITION_S)) if left_s > 0 else 0
        return length if sequence.tenant in self._used_s else max(self._min_positions, length)

    def use(self, sequence: Sequence, length: int) -> None:
        """Count a chunk of a prompt."""
        if self.is_bounded:
            position_s = self._times.position_s(is_scored=is_scored(sequence))
            self._used_s[sequence.tenant] += self._times.chunk_s + length * position_s


class PromptShares:
    """Measures steps and opens the share of each one."""

    def __init__(self, num_tenants: int, prompt_s: float = PROMPT_S, min_positions: int = MIN_POSITIONS) -> None:
        """`num_tenants`: with one, nothing is measured or bounded."""
        self.times = StepTimes()
        self.prompt_s = prompt_s
        self.min_positions = min_positions
        self._num_tenants = num_tenants
        self._unbounded = PromptShare(self.times)
        self._active_s: dict[int, float] = {}  # by tenant: when it had a request
        self._applied_s = 0.0  # when the last step ended

    def open(self, now: float, fair_share: FairShare, num_decoding: int) -> PromptShare:
        """Return the share of the next step. `fair_share` knows the tenants that have requests; `num_decoding`: the
        requests that decode in the step."""
        if self._num_tenants == 1:
            return self._unbounded
        self._active_s.update(dict.fromkeys(fair_share.present, now))
        num_active = sum(now - active_s <= ACTIVE_S for active_s in self._active_s.values())
        if num_active < 2:
            return self._unbounded
        decoding_s = self.times.predict(StepWork(num_decoding, num_decoding, 0))
        return PromptShare(self.times, max(self.prompt_s, decoding_s) / num_active, self.min_positions)

    def record(self, work: StepWork, planned_s: float, now: float) -> None:
        """Learn from a step that was planned at `planned_s` and has ended now. With one step in flight it began when
        the step before it ended."""
        if self._num_tenants > 1:
            self.times.record(work, max(0.0, now - max(planned_s, self._applied_s)))
            self._applied_s = now


def is_scored(sequence: Sequence) -> bool:
    """Return whether the positions that the sequence computes next need log probabilities of its prompt."""
    return sequence.request.params.prompt_logprobs and not sequence.num_generated
