"""Estimate how long a step takes from the work in it, by the measured times of the steps before."""

from typing import NamedTuple

SCALE = 1 / 16  # of all counts, so that the constant 1 is as large as the counts of a small step
RATE = 0.4  # share of an error that one step corrects


class StepWork(NamedTuple):
    """Work of a step."""

    num_chunks: int
    num_positions: int  # of all chunks
    num_scored: int  # positions of prompts with log probabilities, each of which needs a row of logits

    @property
    def features(self) -> tuple[float, float, float, float]:
        return 1.0, self.num_chunks * SCALE, self.num_positions * SCALE, self.num_scored * SCALE


NO_WORK = StepWork(0, 0, 0)


class StepTimes:
    """Linear model: seconds = fixed + a * chunks + b * positions + c * scored positions, none of them negative.

    Learns by normalized least mean squares (Widrow and Hoff, "Adaptive switching circuits", 1960). After a few steps of
    one kind it predicts that kind, whatever the steps before were, and it follows a machine that becomes busy. It need
    not tell the coefficients apart exactly.
    """

    def __init__(self) -> None:
        self._weights = [0.0, 0.0, 0.0, 0.0]  # seconds

    def record(self, work: StepWork, seconds: float) -> None:
        """Learn from a step that took `seconds`."""
        features = work.features
        change = RATE * (seconds - self.predict(work)) / sum(x * x for x in features)
        self._weights = [max(0.0, w + change * x) for w, x in zip(self._weights, features, strict=True)]

    def predict(self, work: StepWork) -> float:
        """Return the estimated seconds of a step; 0 before the first record()."""
        return sum(w * x for w, x in zip(self._weights, work.features, strict=True))

    @property
    def chunk_s(self) -> float:
        """Seconds for one more chunk, without its positions."""
        return self._weights[1] * SCALE

    def position_s(self, *, is_scored: bool) -> float:
        """Seconds for one more position of a prompt."""
        return (self._weights[2] + self._weights[3] * is_scored) * SCALE
