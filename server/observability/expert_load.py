"""Measure how evenly tokens were distributed over the experts in the last minute."""

from collections import deque
from collections.abc import Callable

WINDOW_S = 60.0
MIN_WINDOW_S = 1.0  # shortest window of GET /experts

Counts = list[list[int]]  # [layers][experts]


class ExpertLoad:
    """Token counts per layer and expert over the last WINDOW_S seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._added: deque[tuple[float, Counts]] = deque()
        self._sums: Counts = []

    def add(self, counts: Counts) -> None:
        """Add new counts, [layers][experts]. Also drops old ones, because `imbalance` may never be called."""
        self._added.append((self._clock(), counts))
        self._sums = self._sums or [[0] * len(layer) for layer in counts]
        self._accumulate(counts, 1)
        self._drop_old()

    def imbalance(self) -> list[float]:
        """Return the imbalance of each layer, see the function `imbalance`."""
        self._drop_old()
        return [imbalance(layer) for layer in self._sums]

    def _drop_old(self) -> None:
        oldest_s = self._clock() - WINDOW_S
        while self._added and self._added[0][0] < oldest_s:
            self._accumulate(self._added.popleft()[1], -1)

    def _accumulate(self, counts: Counts, sign: int) -> None:
        for layer, new in zip(self._sums, counts, strict=True):
            for expert, tokens in enumerate(new):
                layer[expert] += sign * tokens


def imbalance(tokens: list[int]) -> float:
    """Return the tokens of the busiest expert divided by the mean: 1 for equal loads, 0 without tokens.

    Example: [3, 1, 0, 0] has the mean 1 and gives 3.
    """
    total = sum(tokens)
    return max(tokens) * len(tokens) / total if total else 0.0
