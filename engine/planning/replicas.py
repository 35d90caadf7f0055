"""Number of equal engines that serve a load within limits on the times that clients see."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.planning.virtual_engine import Timeline

MAX_REPLICAS = 4096
ALONE = 10**9  # so many replicas that no two requests meet
PERCENT = 99  # of first tokens and of gaps that must keep the limits


@dataclass(frozen=True, slots=True)
class Limits:
    """Longest time to the first token and between two tokens, for PERCENT of each."""

    ttft_s: float
    gap_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Latencies and rates of one engine at its share of the load, as its clients see them."""

    num_replicas: int
    max_num_batched_tokens: int
    ttft_p50_s: float
    ttft_p99_s: float
    gap_p50_s: float
    gap_p99_s: float
    tokens_per_s: float  # of one engine
    is_overloaded: bool

    def keeps(self, limits: Limits) -> bool:
        return not self.is_overloaded and self.ttft_p99_s <= limits.ttft_s and self.gap_p99_s <= limits.gap_s


@dataclass(frozen=True, slots=True)
class Answer:
    """The fewest replicas, and what one less would give; None if no number of them keeps the limits."""

    best: Outcome | None
    one_less: Outcome | None
    alone: Outcome  # requests that never meet: what no number of replicas can improve


Simulate = Callable[[int, int], Timeline]  # (number of replicas, token budget) -> one engine's share of the load


def fewest_replicas(simulate: Simulate, budgets: Sequence[int], limits: Limits) -> Answer:
    """Return the fewest replicas over all token budgets; of equal numbers the first budget's.

    With ALONE replicas `simulate` gives the times of requests that never meet.
    """
    best: Outcome | None = None
    one_less: Outcome | None = None
    alone: Outcome | None = None
    for budget in budgets:
        idle = _outcome(simulate, ALONE, budget)
        alone = alone or idle
        most = MAX_REPLICAS if best is None else best.num_replicas - 1
        if idle.keeps(limits) and most:
            found, below = _search(simulate, budget, limits, most)
            if found is not None:
                best, one_less = found, below
    assert alone is not None, "no budgets"
    return Answer(best, one_less, alone)


def _search(simulate: Simulate, budget: int, limits: Limits, most: int) -> tuple[Outcome | None, Outcome | None]:
    """Return the outcome of the fewest replicas, at most `most`, and of one less (None for 0 replicas)."""
    low, failed = 0, None  # the most replicas known to be too few
    high, found = 1, None
    while not (outcome := _outcome(simulate, high, budget)).keeps(limits):
        low, failed = high, outcome
        if high == most:
            return None, None
        high = min(2 * high, most)
    found = outcome
    while high - low > 1:
        middle = (low + high) // 2
        outcome = _outcome(simulate, middle, budget)
        if outcome.keeps(limits):
            high, found = middle, outcome
        else:
            low, failed = middle, outcome
    return found, failed


def _outcome(simulate: Simulate, num_replicas: int, budget: int) -> Outcome:
    timeline = simulate(num_replicas, budget)
    ttft_s, gaps_s = sorted(timeline.ttft_s), sorted(timeline.gaps_s)
    return Outcome(
        num_replicas,
        budget,
        percentile(ttft_s, 50),
        percentile(ttft_s, PERCENT),
        percentile(gaps_s, 50),
        percentile(gaps_s, PERCENT),
        timeline.tokens_per_s,
        timeline.is_overloaded,
    )


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed (nearest rank); 0 of none."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0.0
