"""Compute bootstrap intervals of what two programs' results on the same windows of text give together."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
TAILS = (0.025, 0.975)  # an interval of 95 %
Windows: TypeAlias = NDArray[np.intp]


def bootstrap_interval(measure: Callable[[Windows], float], num_windows: int) -> tuple[float, float]:
    """Return the interval of a measure over as many windows, drawn from these with replacement.

    `measure` gets the windows of one draw, for both programs: what makes a window hard for both does not count. Always
    the same draws.
    """
    rng = np.random.default_rng(0)
    values = [measure(rng.integers(num_windows, size=num_windows)) for _ in range(DRAWS)]
    low, high = np.quantile(values, TAILS)
    return float(low), float(high)
