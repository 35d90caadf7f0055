"""server/observability/log_rate_limit.py: lines that clients can cause at will are limited, others never."""

import logging

from server.observability.log_rate_limit import MAX_KINDS, MAX_LINES, PERIOD_S, LogRateLimit


def record(level: int = logging.ERROR, message: str = "a fault", **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("smoe", level, "", 0, message, None, None)
    made.fields = fields
    return made


def test_lines_that_clients_cause_are_limited_and_dropped_ones_are_counted() -> None:
    now = [0.0]
    limit = LogRateLimit(lambda: now[0])
    assert sum(limit.filter(record()) for _ in range(10_000)) == MAX_LINES
    assert sum(limit.filter(record(logging.INFO, outcome="rejected")) for _ in range(10_000)) == MAX_LINES
    now[0] = PERIOD_S
    later = record()
    assert limit.filter(later) and later.fields == {"left_out_before": 10_000 - MAX_LINES}


def test_lines_of_requests_that_used_the_engine_are_never_dropped() -> None:
    limit = LogRateLimit()
    assert all(limit.filter(record(logging.INFO, "request finished", outcome="abort")) for _ in range(10_000))


def test_kinds_of_lines_are_bounded() -> None:
    limit = LogRateLimit()
    passed = sum(limit.filter(record(message=f"fault {number}")) for number in range(10_000))
    assert passed == MAX_KINDS + MAX_LINES and len(limit._kinds) == MAX_KINDS + 1
