"""Least squares with weights that are not negative."""

from collections.abc import Sequence

MAX_SWEEPS = 5000
TOLERANCE = 1e-10  # of a weight's change in a sweep, as a share of the sum of squares


def nonnegative_least_squares(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float]:
    """Return the weights w >= 0 that minimize sum((row . w - target)^2), by coordinate descent.

    Features that are 0 in all rows get 0.
    """
    width = len(rows[0])
    scales = [sum(row[i] * row[i] for row in rows) ** 0.5 or 1.0 for i in range(width)]  # of the columns
    scaled = [[value / scale for value, scale in zip(row, scales, strict=True)] for row in rows]
    gram = [[sum(row[i] * row[j] for row in scaled) for j in range(width)] for i in range(width)]
    aims = [sum(row[i] * target for row, target in zip(scaled, targets, strict=True)) for i in range(width)]
    weights = [0.0] * width
    smallest = TOLERANCE * (sum(target * target for target in targets) ** 0.5 or 1.0)
    for _ in range(MAX_SWEEPS):
        largest = 0.0
        for i in range(width):
            if gram[i][i] == 0.0:
                continue
            error = aims[i] - sum(gram[i][j] * weights[j] for j in range(width))
            updated = max(0.0, weights[i] + error / gram[i][i])
            largest = max(largest, abs(updated - weights[i]))
            weights[i] = updated
        if largest <= smallest:
            break
    return [weight / scale for weight, scale in zip(weights, scales, strict=True)]
