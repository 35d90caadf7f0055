"""Load of the last five minutes: each figure against a plain sum over the events, on a clock of its own."""

import logging
import random

from engine.types import ExpertReads, StepStats
from server.observability.recent_load import WINDOW_S, LoadPoint, RecentLoad
from server.observability.throughput_log import ThroughputLog

IDLE = LoadPoint(0, 0, 0, 0, 0, None, None, None)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def a_step(**changed: int | float) -> StepStats:
    given = {"num_running": 3, "num_waiting": 1, "num_blocks_held": 5, "num_blocks_total": 20, "step_s": 0.02}
    return StepStats(**{**given, "num_tokens": 12, "num_prefill_tokens": 10, "num_generated_tokens": 2, **changed})


def test_a_point_sums_the_steps_of_its_interval() -> None:
    clock = Clock()
    recent = RecentLoad(clock)
    recent.add_step(a_step())
    clock.now_s = 1004.9
    recent.add_step(a_step(num_running=4, num_blocks_held=8, step_s=0.04, num_prefill_tokens=0, num_accepted_tokens=1))
    for time_s in (0.5, 0.1, 0.3):
        recent.add_first_token(time_s)
    clock.now_s = 1005.0
    recent.add_step(a_step())  # belongs to the second that is not over
    [before, point] = recent.points(5, 2)
    assert before == IDLE
    assert (point.prompt_tokens_per_s, point.generated_tokens_per_s) == (10 / 5, 4 / 5)
    assert point.accepted_tokens_per_s == 1 / 5
    assert (point.running, point.waiting, point.kv_usage) == (4, 1, 8 / 20)
    assert point.step_ms is not None and abs(point.step_ms - 30) < 1e-9
    assert (point.ttft_p50_ms, point.ttft_p99_ms) == (300, 500)


def test_the_points_of_random_events_are_plain_sums() -> None:
    rng = random.Random(1)
    clock = Clock()
    recent = RecentLoad(clock)
    events: list[tuple[float, int]] = []
    for _ in range(2000):
        clock.now_s += rng.choice([0.01, 0.3, 1.5])
        events.append((clock.now_s, rng.randint(0, 9)))
        recent.add_step(a_step(num_generated_tokens=events[-1][1]))
    end = int(clock.now_s)
    for interval in (1, 2, 5):
        found = [point.generated_tokens_per_s for point in recent.points(interval, 60)]
        starts = [end - interval * (60 - i) for i in range(60)]
        assert found == [sum(n for s, n in events if a <= s < a + interval) / interval for a in starts]


def test_old_seconds_are_forgotten_and_idle_ones_take_no_memory() -> None:
    clock = Clock()
    recent = RecentLoad(clock)
    for _ in range(3 * WINDOW_S):
        recent.add_step(a_step())
        clock.now_s += 1
    assert len(recent._seconds) <= WINDOW_S + 1
    clock.now_s += 10 * WINDOW_S
    assert recent.points(5, 60) == [IDLE] * 60
    recent.add_step(a_step())
    assert len(recent._seconds) == 1


def test_the_log_has_a_line_per_busy_interval_and_none_for_an_idle_one() -> None:
    clock = Clock()
    recent = RecentLoad(clock)
    log = ThroughputLog(recent)
    lines: list[dict[str, object]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append({"message": record.getMessage(), **record.fields})  # type: ignore[attr-defined]

    logger = logging.getLogger("smoe.throughput")
    handler = Handler()
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        log.write()
        recent.add_step(a_step(num_generated_tokens=25))
        clock.now_s += 10
        log.write()
        clock.now_s += 10
        log.write()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert lines == [
        {
            "message": "throughput",
            "prompt_tokens_per_s": 1.0,
            "tokens_per_s": 2.5,
            "running": 3,
            "waiting": 1,
            "kv_usage": 0.25,
            "step_ms": 20.0,
        }
    ]


def test_steps_that_mostly_wait_for_experts_are_bound_by_the_disk_for_ten_seconds() -> None:
    clock = Clock()
    recent = RecentLoad(clock)
    assert not recent.is_disk_bound
    waiting = StepStats(step_s=0.1, expert_reads=ExpertReads(1, 9, 900, 0.08))
    computing = StepStats(step_s=0.1, expert_reads=ExpertReads(9, 1, 100, 0.01))
    for step, expected in ((computing, False), (waiting, False), (waiting, True)):  # 1 of 10, 9 of 20, 17 of 30
        recent.add_step(step)
        assert recent.is_disk_bound == expected
    clock.now_s += 11
    assert not recent.is_disk_bound
