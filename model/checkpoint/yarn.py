"""YaRN: rotary angles for longer contexts, each pair by how often it turns within the context of the first training.

Peng et al., 2023. Pairs that turn often keep their frequency, pairs that turn seldom are slowed down by a factor, and
between them the frequency goes from one to the other in a straight line over the pairs' numbers. Imports no torch.
"""

import math
from typing import NamedTuple

FAST, SLOW = 32.0, 1.0  # turns within the first context: from FAST on a pair is kept, up to SLOW it is slowed down


class YarnRamp(NamedTuple):
    """Where the line begins and ends, as numbers of pairs. `end` may lie in front of `start` in odd files."""

    start: float
    end: float

    def slowed(self, pair: int, width: float) -> float:
        """Return the share of a pair's frequency that is slowed down, 0 to 1. `width`: of the line, not 0."""
        return min(max((pair - self.start) / width, 0.0), 1.0)


def yarn_ramp(
    head_dim: int, theta: float, first_context: int, fast: float = FAST, slow: float = SLOW, *, is_whole: bool = True
) -> YarnRamp:
    """Return the line for pairs whose frequencies are powers of `theta`, which must be above 1.

    `is_whole`: it begins and ends at whole numbers.
    """

    def pair_that_turns(times: float) -> float:
        return head_dim * (math.log(first_context) - math.log(2 * math.pi) - math.log(times)) / (2 * math.log(theta))

    start, end = pair_that_turns(fast), pair_that_turns(slow)
    if is_whole:
        start, end = math.floor(start), math.ceil(end)
    return YarnRamp(max(start, 0), min(end, head_dim - 1))


def divisor(factor: float, slowed: float) -> float:
    """Return the divisor of a frequency of which the share `slowed` is divided by the factor."""
    return 1 / (slowed / factor + (1 - slowed))


def attention_scale(factor: float, multiplier: float = 1.0) -> float:
    """Return what YaRN multiplies queries and keys by, so that attention over more positions stays as sharp."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1
