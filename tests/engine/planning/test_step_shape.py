"""engine/planning/step_shape.py against a loop over rows and positions."""

from types import SimpleNamespace
from typing import Any

import pytest

from engine.planning.step_shape import StepShape, shape_of

CHUNKS = [(0, 7, True, False), (5, 4, True, True), (30, 6, True, True), (9, 1, False, True), (40, 3, False, True)]


def plan_of(chunks: list[tuple[int, int, bool, bool]]) -> Any:
    """Return a plan of chunks (start, length, is_prefill, samples)."""
    names = ("start", "length", "is_prefill", "samples")
    made = [SimpleNamespace(**dict(zip(names, chunk, strict=True))) for chunk in chunks]
    return SimpleNamespace(chunks=made, num_tokens=sum(chunk.length for chunk in made))


def seen_by(position: int, window: int | None) -> int:
    return sum(1 for other in range(position + 1) if window is None or position - other < window)


@pytest.mark.parametrize("window", [None, 1, 8, 33, 1000])
def test_rows_see_what_a_loop_over_positions_counts(window: int | None) -> None:
    seen = {True: 0, False: 0}
    for start, length, is_prefill, _ in CHUNKS:
        seen[is_prefill] += sum(seen_by(position, window) for position in range(start, start + length))
    # One logit of each prompt that ends, one of the decode row, three of the row with two drafted tokens.
    assert shape_of(plan_of(CHUNKS), window) == StepShape(21, 2 + 1 + 3, seen[False], seen[True])


def test_the_example_of_the_docstring() -> None:
    assert shape_of(plan_of([(4, 2, True, True), (9, 1, False, True)]), None) == StepShape(3, 2, 10, 11)
