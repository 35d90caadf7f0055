"""engine/planning/virtual_engine.py: times that queueing theory and a count by hand give."""

import random
from itertools import accumulate
from statistics import mean

import pytest

from engine.capacity.new_scheduler import make_scheduler
from engine.capacity.sizing import EngineLimits
from engine.config import EngineConfig
from engine.planning.virtual_engine import Arrival, Timeline, VirtualEngine
from engine.scheduling.step_plan import StepPlan
from model.bench.shapes import PRESETS

STEP_S = 0.5


def run(
    arrivals: list[Arrival], *, budget: int = 64, max_num_seqs: int = 8, max_ttft_s: float = 1e9, num_blocks: int = 64
) -> Timeline:
    """Run a load on an engine whose steps take STEP_S for each 32 rows begun."""
    config = EngineConfig(model="", max_num_seqs=max_num_seqs, enable_prefix_caching=False)
    scheduler = make_scheduler(config, PRESETS["tiny"], EngineLimits(num_blocks, 1024, budget))
    return VirtualEngine(scheduler, step_s).run(arrivals, max_ttft_s)


def step_s(plan: StepPlan) -> float:
    return STEP_S * -(-plan.num_tokens // 32)


def test_a_request_alone_takes_its_chunks_and_then_a_step_for_each_token() -> None:
    timeline = run([Arrival(3.0, 100, 4)])  # 64 rows and 36 rows: 2 times STEP_S each
    assert timeline.ttft_s == [pytest.approx(4 * STEP_S)]
    assert timeline.gaps_s == [STEP_S] * 3
    assert timeline.end_s == 3.0 + 7 * STEP_S
    assert (timeline.num_tokens, timeline.is_overloaded) == (4, False)


def test_one_request_at_a_time_waits_as_in_the_queue_m_d_1() -> None:
    """Pollaczek (1930), Khinchine (1932): with Poisson arrivals and a constant service time S at utilisation u, the
    mean wait is u S / (2 (1 - u))."""
    utilisation, rng = 0.6, random.Random(5)
    times = accumulate(rng.expovariate(utilisation / STEP_S) for _ in range(4000))
    timeline = run([Arrival(time, 1, 1) for time in times], budget=1)
    wait_s = mean(timeline.ttft_s) - STEP_S
    assert wait_s == pytest.approx(utilisation * STEP_S / (2 * (1 - utilisation)), rel=0.1)


def test_requests_that_come_together_share_steps() -> None:
    timeline = run([Arrival(0.0, 4, 3)] * 8)
    assert timeline.end_s == 3 * STEP_S  # 8 prompts of 4 rows are one step
    assert timeline.num_tokens == 24


def test_requests_beyond_the_running_slots_wait() -> None:
    timeline = run([Arrival(0.0, 4, 3)] * 8, max_num_seqs=4)
    assert timeline.ttft_s == [STEP_S] * 4 + [4 * STEP_S] * 4


def test_requests_that_do_not_fit_the_blocks_together_still_finish() -> None:
    timeline = run([Arrival(0.0, 100, 100)] * 4, num_blocks=16)
    assert timeline.num_tokens == 400


def test_a_run_ends_when_a_first_token_is_too_late() -> None:
    timeline = run([Arrival(0.0, 1, 1)] * 1000, budget=1, max_ttft_s=5.0)
    assert timeline.is_overloaded
    assert timeline.end_s < 5.0 + 2 * STEP_S
