"""How evenly the experts were loaded in the last minute, from what the engine tells a few times a second."""

from collections import deque
from collections.abc import Callable

WINDOW_S = 60.0
MIN_WINDOW_S = 1.0  # shortest window of GET /experts

Counts = list[list[int]]  # [layers][experts]


class ExpertLoad:
    """Running sums over what was added in the last WINDOW_S."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._parts: deque[tuple[float, Counts]] = deque()
        self._sums: Counts = []

    def add(self, counts: Counts) -> None:
        """New tokens. What is too old goes now, too: nobody may ever ask."""
        self._parts.append((self._clock(), counts))
        self._sums = self._sums or [[0] * len(layer) for layer in counts]
        self._shift(counts, 1)
        self._forget()

    def imbalance(self) -> list[float]:
        """Per layer, tokens of the busiest expert over the experts' mean: 1 where all are alike, 0 without tokens."""
        self._forget()
        return [imbalance(layer) for layer in self._sums]

    def _forget(self) -> None:
        oldest_s = self._clock() - WINDOW_S
        while self._parts and self._parts[0][0] < oldest_s:
            self._shift(self._parts.popleft()[1], -1)

    def _shift(self, counts: Counts, sign: int) -> None:
        for layer, new in zip(self._sums, counts, strict=True):
            for expert, tokens in enumerate(new):
                layer[expert] += sign * tokens


def imbalance(tokens: list[int]) -> float:
    """[3, 1, 0, 0] gives 3."""
    total = sum(tokens)
    return max(tokens) * len(tokens) / total if total else 0.0
