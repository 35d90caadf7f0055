"""engine/planning/step_time_model.py: steps between, below and beyond the measured ones, computed by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from engine.planning.step_time_model import MeasuredStep, MeasurementError, StepTimeModel, read_steps

STEPS = [
    MeasuredStep("prefill", 1, 100, 1.0),
    MeasuredStep("prefill", 1, 8, 9.0),  # fewer rows than the largest decode batch: not used
    MeasuredStep("decode", 2, 256, 0.2),
    MeasuredStep("decode", 10, 256, 0.4),
    MeasuredStep("decode", 10, 1256, 1.4),
]


def plan(*chunks: tuple[int, int, bool]) -> Any:
    """Return a plan of chunks (start, length, is_prefill)."""
    made = [SimpleNamespace(start=start, length=length, is_prefill=prefill) for start, length, prefill in chunks]
    return SimpleNamespace(chunks=made, num_tokens=sum(chunk.length for chunk in made))


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [(1, 0.2), (2, 0.2), (6, 0.3), (10, 0.4), (55, 0.7), (100, 1.0), (190, 1.6)],
)
def test_rows_lie_on_straight_lines_between_the_measured_ones(rows: int, seconds: float) -> None:
    assert StepTimeModel(STEPS).rows_s(rows) == pytest.approx(seconds)


def test_positions_beyond_the_measured_context_cost_the_slope_between_two_contexts() -> None:
    model = StepTimeModel(STEPS)  # 1.0 s for 10 rows and 1,000 positions more: 0.1 ms for a row and a position
    assert model.step_s(plan((256, 1, False), (256, 1, False))) == pytest.approx(0.2)
    assert model.step_s(plan((1256, 1, False), (2256, 1, False))) == pytest.approx(0.2 + 3000 * 1e-4)
    assert model.step_s(plan((0, 100, True))) == pytest.approx(1.0)
    assert model.step_s(plan((500, 100, True))) == pytest.approx(1.0 + 500 * 100 * 1e-4)
    assert model.step_s(plan((0, 98, True), (1256, 1, False), (256, 1, False))) == pytest.approx(1.0 + 1000 * 1e-4)


def test_a_row_sees_no_more_than_the_window() -> None:
    model = StepTimeModel(STEPS, window=300)
    assert model.step_s(plan((5000, 1, False), (256, 1, False))) == pytest.approx(0.2 + 44 * 1e-4)


def test_one_measured_batch_scales_with_the_rows() -> None:
    model = StepTimeModel([MeasuredStep("decode", 4, 256, 0.2)])
    assert (model.rows_s(1), model.rows_s(8)) == pytest.approx((0.2, 0.4))


@pytest.mark.parametrize(
    "figures",
    [{}, [], {"steps": 1}, {"steps": [{"kind": "decode"}]}, {"kernels": []},
     {"steps": [{"kind": "decode", "batch": 0, "context": 1, "seconds": 1.0}]},
     {"steps": [{"kind": "decode", "batch": 1, "context": 1, "seconds": 0.0}]}],
)  # fmt: skip
def test_what_is_no_measurement_is_refused(figures: Any) -> None:
    with pytest.raises(MeasurementError):
        read_steps(figures)
    with pytest.raises(MeasurementError, match="no decode steps"):
        StepTimeModel([])


def test_the_output_of_bench_engine_is_read_with_its_other_fields() -> None:
    step = {"kind": "decode", "batch": 2, "context": 256, "seconds": 0.5, "tokens_per_s": 4.0, "share": 0.9}
    assert read_steps({"kind": "engine", "steps": [step]}) == [MeasuredStep("decode", 2, 256, 0.5)]
