"""A real server's run in virtual time: with the times of its steps the scheduler gives its clients' times.

recorded/ has the step log of such a run as tests/measure/scale/capacity_plan.py makes (--keep): bench-400m, 20
requests, 0.6 a second, on a busy machine; and what its clients measured. Nothing is measured here.
"""

import json
from pathlib import Path

import pytest

from engine.capacity.new_scheduler import make_scheduler
from engine.capacity.sizing import EngineLimits
from engine.config import EngineConfig
from engine.planning.logged_steps import read_step_log
from engine.planning.replicas import percentile
from model.bench.shapes import PRESETS
from tests.support.replayed_steps import arrivals_in, behind_requests, replay

RECORDED = Path(__file__).parent / "recorded"
NUM_WARM_UP = 2  # requests of `smoe bench serve` before the measured ones


def test_the_steps_of_a_recorded_run_give_its_queue_and_its_clients_times() -> None:
    measured = json.loads((RECORDED / "run.json").read_text())
    steps = behind_requests(read_step_log(RECORDED / "run.jsonl"), NUM_WARM_UP)
    config = EngineConfig(model="", max_num_seqs=32, enable_prefix_caching=False)
    scheduler = make_scheduler(config, PRESETS["bench-400m"], EngineLimits(4096, 1024, 128))
    timeline, shapes = replay(scheduler, steps, measured["request_s"])

    arrivals = arrivals_in(steps)
    assert timeline.num_tokens == sum(arrival.num_output_tokens for arrival in arrivals)
    assert sum(shape.num_rows for shape in shapes) == sum(step.shape.num_rows for step in steps)
    assert len(shapes) == pytest.approx(len(steps), rel=0.03)  # a request may come a step earlier or later
    found = {
        "first token p50": percentile(sorted(timeline.ttft_s), 50),
        "first token p99": percentile(sorted(timeline.ttft_s), 99),
        "gap p50": percentile(sorted(timeline.gaps_s), 50),
        "gap p99": percentile(sorted(timeline.gaps_s), 99),
        "tokens/s": timeline.tokens_per_s,
    }
    for name, value in found.items():
        assert value == pytest.approx(measured[name], rel=0.03), name
