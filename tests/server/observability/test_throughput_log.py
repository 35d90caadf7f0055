"""server/observability/throughput_log.py: under load a line every 10 s, on a clock of its own; none without load."""

import logging

import pytest

from engine.types import StepStats
from server.observability.recent_load import RecentLoad
from server.observability.throughput_log import INTERVAL_S, ThroughputLog

STEP_S, TOKENS_PER_STEP = 0.5, 4
BUSY_S, IDLE_S = 60, 120


class Clock:
    """Time that passes while somebody sleeps: an engine steps until `busy_until_s`."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.busy_until_s = self.now_s + BUSY_S
        self.recent = RecentLoad(self)

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        for _ in range(int(seconds / STEP_S)):
            if self.now_s < self.busy_until_s:
                self.recent.add_step(StepStats(step_s=STEP_S, num_generated_tokens=TOKENS_PER_STEP, num_running=1))
            self.now_s += STEP_S
        if self.now_s > self.busy_until_s + IDLE_S:
            raise TimeoutError


def test_empty_steps_have_no_line(caplog: pytest.LogCaptureFixture) -> None:
    """An engine that takes messages without work, as after its start, reports such steps."""
    caplog.set_level(logging.INFO, "smoe.throughput")
    clock = Clock()
    log = ThroughputLog(clock.recent, clock.sleep)
    for stats, num_lines in ((StepStats(num_blocks_total=100), 0), (StepStats(num_waiting=1), 1)):
        clock.recent.add_step(stats)
        clock.now_s += 1
        log.write()
        assert len(caplog.records) == num_lines


@pytest.mark.anyio
async def test_a_busy_minute_has_six_lines_and_the_idle_time_after_it_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "smoe.throughput")
    clock = Clock()
    with pytest.raises(TimeoutError):
        await ThroughputLog(clock.recent, clock.sleep).run()
    rates = [record.fields["tokens_per_s"] for record in caplog.records]  # type: ignore[attr-defined]
    assert rates == [TOKENS_PER_STEP / STEP_S] * (BUSY_S // INTERVAL_S)
