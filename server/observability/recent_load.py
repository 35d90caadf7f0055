"""Rates and times of the last five minutes, second by second: for the log, `smoe top` and the page's dashboard."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.types import StepStats

WINDOW_S = 300
DISK_BOUND_S = 10
MAX_FIRST_TOKENS = 1000  # times kept per second, for the percentiles


@dataclass
class Second:
    """Counts of one second of the monotonic clock."""

    number: int
    num_steps: int = 0
    step_s: float = 0.0
    waited_s: float = 0.0  # of step_s, for experts from the disk
    num_prefill: int = 0  # positions of prompts
    num_generated: int = 0
    num_accepted: int = 0  # drafted tokens
    num_running: int = 0  # the most of its steps
    num_waiting: int = 0
    kv_usage: float = 0.0
    first_tokens_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class LoadPoint:
    """Load over a few seconds. Times are None if nothing was measured."""

    prompt_tokens_per_s: float
    generated_tokens_per_s: float
    running: int  # choices, the most of any step
    waiting: int
    kv_usage: float  # fraction of the KV blocks in use, the most after any step
    step_ms: float | None  # mean
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    accepted_tokens_per_s: float = 0.0  # drafted ones, which generated_tokens_per_s includes


class RecentLoad:
    """Sums per second. Seconds without a step take no memory."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` returns monotonic seconds."""
        self._clock = clock
        self._seconds: deque[Second] = deque()

    def add_step(self, stats: StepStats) -> None:
        """Add one engine step."""
        second = self._current()
        second.num_steps += 1
        second.step_s += stats.step_s
        second.waited_s += stats.expert_reads.waited_s if stats.expert_reads else 0.0
        second.num_prefill += stats.num_prefill_tokens
        second.num_generated += stats.num_generated_tokens
        second.num_accepted += stats.num_accepted_tokens
        second.num_running = max(second.num_running, stats.num_running)
        second.num_waiting = max(second.num_waiting, stats.num_waiting)
        second.kv_usage = max(second.kv_usage, stats.num_blocks_held / max(1, stats.num_blocks_total))

    def add_first_token(self, seconds: float) -> None:
        """Add the time from the arrival of a choice to its first token."""
        times = self._current().first_tokens_s
        if len(times) < MAX_FIRST_TOKENS:
            times.append(seconds)

    @property
    def is_disk_bound(self) -> bool:
        """True if most of the time of the steps in the last DISK_BOUND_S seconds was spent waiting for the disk."""
        first = math.floor(self._clock()) - DISK_BOUND_S
        recent = [second for second in self._seconds if second.number >= first]
        return 2 * sum(second.waited_s for second in recent) > sum(second.step_s for second in recent)

    def points(self, interval_s: int, count: int) -> list[LoadPoint]:
        """Return the load of the last `count` intervals of whole seconds, the newest last.

        The second that is not over yet is left out. Example: at 10.7 s two points of 5 s are about [0, 5) and [5, 10).
        """
        end = math.floor(self._clock())
        parts: list[list[Second]] = [[] for _ in range(count)]
        for second in self._seconds:
            index = count - 1 - (end - 1 - second.number) // interval_s
            if second.number < end and index >= 0:
                parts[index].append(second)
        return [_point(part, interval_s) for part in parts]

    def _current(self) -> Second:
        """Return the present second, and drop the oldest ones."""
        number = math.floor(self._clock())
        if not self._seconds or self._seconds[-1].number != number:
            self._seconds.append(Second(number))
        while self._seconds[0].number < number - WINDOW_S:
            self._seconds.popleft()
        return self._seconds[-1]


def _point(seconds: Sequence[Second], interval_s: int) -> LoadPoint:
    num_steps = sum(second.num_steps for second in seconds)
    times_s = sorted(time_s for second in seconds for time_s in second.first_tokens_s)
    return LoadPoint(
        prompt_tokens_per_s=sum(second.num_prefill for second in seconds) / interval_s,
        generated_tokens_per_s=sum(second.num_generated for second in seconds) / interval_s,
        running=max((second.num_running for second in seconds), default=0),
        waiting=max((second.num_waiting for second in seconds), default=0),
        kv_usage=max((second.kv_usage for second in seconds), default=0.0),
        step_ms=1000 * sum(second.step_s for second in seconds) / num_steps if num_steps else None,
        ttft_p50_ms=_percentile_ms(times_s, 0.5),
        ttft_p99_ms=_percentile_ms(times_s, 0.99),
        accepted_tokens_per_s=sum(second.num_accepted for second in seconds) / interval_s,
    )


def _percentile_ms(times_s: Sequence[float], share: float) -> float | None:
    """Return the smallest time that this share of the times does not exceed, in milliseconds (nearest rank)."""
    return 1000 * times_s[math.ceil(share * len(times_s)) - 1] if times_s else None
