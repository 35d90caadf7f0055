"""engine/planning/fitted_steps.py: steps whose price is known are predicted, also those that were not measured."""

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from engine.planning.fitted_steps import FittedStepTimes, read_fitted
from engine.planning.logged_steps import LoggedRequest, LoggedStep, first_token_s, read_step_log
from engine.planning.step_shape import StepShape
from engine.planning.step_time_model import MeasurementError

Price = Callable[[StepShape], float]


def price(shape: StepShape) -> float:
    """Return seconds as of a mixture of experts: reading that saturates, and products in proportion to rows."""
    reading = 0.010 * (1 - 0.75**shape.num_rows)
    products = 0.0006 * shape.num_rows + 0.0003 * shape.num_logits
    return reading + products + 1e-7 * shape.decode_positions + 2e-8 * shape.prompt_pairs


def shapes(seed: int, count: int) -> list[StepShape]:
    """Return decode steps, some beside chunks of prompts: what a closed loop makes."""
    rng, found = random.Random(seed), []
    for _ in range(count):
        running, length = rng.choice((1, 2, 3, 4, 7, 8, 14, 16, 28, 32)), rng.choice((0, 0, rng.randint(1, 96)))
        start, samples = rng.randint(0, 200), rng.randint(0, 1)
        pairs = length * start + length * (length + 1) // 2
        found.append(
            StepShape(running + length, running + (samples if length else 0), running * rng.randint(50, 400), pairs)
        )
    return found


def measured(cost: Price, seed: int = 0, count: int = 800) -> list[LoggedStep]:
    return [LoggedStep(0.0, cost(shape), shape) for shape in shapes(seed, count)]


def test_steps_that_were_not_measured_get_their_price() -> None:
    times = FittedStepTimes(measured(price))
    for shape in shapes(seed=1, count=200):
        assert times.shape_s(shape) == pytest.approx(price(shape), rel=0.03)


def test_the_fit_keeps_the_mean_of_times_that_scatter() -> None:
    rng = random.Random(2)
    steps = measured(lambda shape: price(shape) * (1.0 if rng.random() < 0.8 else 2.0))  # the median is the price
    times = FittedStepTimes(steps)
    total = sum(times.shape_s(shape) for shape in shapes(seed=3, count=300))
    assert total == pytest.approx(1.2 * sum(price(shape) for shape in shapes(seed=3, count=300)), rel=0.03)


def test_a_step_that_something_else_held_up_is_left_out() -> None:
    steps = measured(price)
    stalled = [*steps, *(LoggedStep(0.0, 5.0, StepShape(8, 8, 2000, 0)) for _ in range(3))]
    shape = StepShape(8, 8, 2000, 0)
    assert FittedStepTimes(stalled).shape_s(shape) == pytest.approx(FittedStepTimes(steps).shape_s(shape), rel=0.01)


def test_rows_beyond_the_measured_ones_continue_the_line_and_fewer_cost_as_much_as_the_fewest() -> None:
    linear = [
        LoggedStep(0.0, 0.01 + 0.001 * rows, StepShape(rows, 0, 0, 0)) for rows in (4, 8, 16, 32) for _ in range(30)
    ]
    times = FittedStepTimes(linear)
    assert times.shape_s(StepShape(64, 0, 0, 0)) == pytest.approx(0.074, rel=1e-3)
    assert times.shape_s(StepShape(1, 0, 0, 0)) == pytest.approx(0.014, rel=1e-3)
    assert times.rows_s(24) == pytest.approx(0.034, rel=1e-3)


def test_a_plan_is_priced_by_its_chunks_within_the_window() -> None:
    times = FittedStepTimes(measured(price), window=100)
    chunks = [
        SimpleNamespace(start=300, length=1, is_prefill=False, samples=True),
        SimpleNamespace(start=0, length=40, is_prefill=True, samples=True),
    ]
    plan: Any = SimpleNamespace(chunks=chunks, num_tokens=41)
    assert times.step_s(plan) == times.shape_s(StepShape(41, 2, 100, 820))


def test_the_output_of_bench_steps_is_read() -> None:
    steps = measured(price)
    figures = msgspec.json.decode(msgspec.json.encode({"kind": "steps", "request_s": 0.002, "steps": steps}))
    times = read_fitted(figures)
    assert times.request_s == 0.002
    assert times.shape_s(steps[0].shape) == FittedStepTimes(steps).shape_s(steps[0].shape)


@pytest.mark.parametrize("figures", [{}, {"steps": [], "request_s": 0.0}, {"steps": [{"a": 1}], "request_s": 0.0},
                                     {"steps": 3, "request_s": 1.0}, {"steps": []}])  # fmt: skip
def test_what_is_no_measurement_is_refused(figures: Any) -> None:
    with pytest.raises(MeasurementError):
        read_fitted(figures)


def test_a_step_without_time_is_refused() -> None:
    steps = msgspec.to_builtins([*measured(price), LoggedStep(0.0, 0.0, StepShape(1, 1, 1, 0))])
    with pytest.raises(MeasurementError, match="without rows or time"):
        read_fitted({"steps": steps, "request_s": 0.0})


NAN, INFINITY, ONE = (
    float("nan"),
    float("inf"),
    {"num_rows": 1, "num_logits": 1, "decode_positions": 1, "prompt_pairs": 0},
)


@pytest.mark.parametrize("request_s", [NAN, INFINITY, -5.0, 10**400])
def test_a_request_takes_a_time(request_s: float) -> None:
    steps = msgspec.to_builtins(measured(price))
    with pytest.raises(MeasurementError, match=r"request_s that is no time|is not the output"):
        read_fitted({"steps": steps, "request_s": request_s})


@pytest.mark.parametrize("seconds", [NAN, INFINITY, -1.0, 1e300, 10**400])
def test_a_step_takes_a_time(seconds: float) -> None:
    steps = [*msgspec.to_builtins(measured(price)), {"begun_s": 0.0, "seconds": seconds, "shape": ONE}]
    with pytest.raises(MeasurementError, match=r"without rows or time|is not the output"):
        read_fitted({"steps": steps, "request_s": 0.0})


@pytest.mark.parametrize("name", ["num_logits", "decode_positions", "prompt_pairs"])
def test_counts_of_a_step_are_not_negative(name: str) -> None:
    steps = [*msgspec.to_builtins(measured(price)), {"begun_s": 0.0, "seconds": 0.01, "shape": ONE | {name: -1}}]
    with pytest.raises(MeasurementError, match="count below 0"):
        read_fitted({"steps": steps, "request_s": 0.0})


def test_the_steps_of_a_first_token_are_those_up_to_the_first_logits(tmp_path: Any) -> None:
    """A prompt of two chunks, two tokens, a pause, and a prompt of one chunk."""
    request, prompt = LoggedRequest(0.5, 90, 3), StepShape(64, 0, 0, 2080)
    lines = [
        LoggedStep(1.0, 0.25, prompt, [request]),
        LoggedStep(1.25, 0.5, StepShape(26, 1, 0, 2015)),
        LoggedStep(1.75, 0.1, StepShape(1, 1, 91, 0)),
        LoggedStep(9.0, 0.125, StepShape(5, 1, 0, 15), [request]),
    ]
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    assert read_step_log(path) == lines
    assert list(first_token_s(lines)) == [0.75, 0.125]
    path.write_text("{}\n")
    with pytest.raises(MeasurementError, match="is not a step log"):
        read_step_log(path)
