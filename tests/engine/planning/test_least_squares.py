"""engine/planning/least_squares.py against numpy, and against the conditions of a minimum."""

import numpy as np
import pytest

from engine.planning.least_squares import nonnegative_least_squares


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_minimum_over_weights_that_are_not_negative(seed: int) -> None:
    """Kuhn and Tucker (1951): the gradient is 0 where a weight is positive, and not negative where it is 0."""
    rng = np.random.default_rng(seed)
    rows = rng.random((60, 6)) * [1, 10, 100, 1000, 1, 1]
    targets = rows @ [2.0, 0.0, 0.3, 0.001, -1.0, 4.0] + rng.normal(0, 0.1, 60)
    weights = np.array(nonnegative_least_squares(rows.tolist(), targets.tolist()))
    gradient = rows.T @ (rows @ weights - targets) / np.linalg.norm(rows, axis=0)
    assert (weights >= 0).all() and weights[4] == 0.0
    assert np.abs(gradient[weights > 0]).max() < 1e-4 * np.linalg.norm(targets)
    assert gradient.min() > -1e-4 * np.linalg.norm(targets)


def test_without_a_bound_that_matters_it_is_numpys_answer() -> None:
    rng = np.random.default_rng(7)
    rows = rng.random((40, 4))
    targets = rows @ [1.0, 2.0, 3.0, 4.0] + rng.normal(0, 0.01, 40)
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0]
    assert nonnegative_least_squares(rows.tolist(), targets.tolist()) == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_feature_that_no_row_has_gets_nothing() -> None:
    assert nonnegative_least_squares([[1.0, 0.0], [2.0, 0.0]], [3.0, 6.0]) == pytest.approx([3.0, 0.0])
