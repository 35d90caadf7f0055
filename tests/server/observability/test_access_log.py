"""server/observability/access_log.py: one line per finished choice, as text or JSON."""

import json

from engine.types import Timing
from server.observability.access_log import AccessLog
from server.observability.log_stream import logging_to
from tests.support.pipes import written


def log_one(outcome: str = "stop", finished_s: float | None = 12.0) -> None:
    AccessLog(clock=lambda: 13.0).finished(
        "req-1",
        outcome,  # type: ignore[arg-type]
        num_prompt_tokens=7,
        num_generation_tokens=3,
        num_cached_tokens=5,
        timing=Timing(10.0, 10.25, 10.5, finished_s),
    )


def test_a_finished_request_is_one_line_of_text(pipe: tuple[int, int]) -> None:
    with logging_to(pipe[1]):
        log_one()
    [line] = written(*pipe)
    assert line.split(" ", 1)[1] == (
        "INFO request finished request_id=req-1 outcome=stop prompt_tokens=7 generation_tokens=3 cached_tokens=5 "
        "queue_s=0.25 ttft_s=0.5 total_s=2.0"
    )


def test_a_finished_request_is_one_json_object(pipe: tuple[int, int]) -> None:
    with logging_to(pipe[1], style="json"):
        log_one("abort", finished_s=None)
    [line] = written(*pipe)
    fields = json.loads(line)
    assert fields["request_id"] == "req-1"
    assert fields["outcome"] == "abort"
    assert (fields["prompt_tokens"], fields["generation_tokens"], fields["cached_tokens"]) == (7, 3, 5)
    assert (fields["queue_s"], fields["ttft_s"], fields["total_s"]) == (0.25, 0.5, 3.0)
    assert fields["level"] == "info"
