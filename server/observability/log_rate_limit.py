"""Limit the rate of log lines that clients can cause at will, such as rejections.

Lines of requests that used the engine are never dropped, so that sums over the log stay correct.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

MAX_LINES = 60
PERIOD_S = 60.0
MAX_KINDS = 256


@dataclass
class _Kind:
    since_s: float
    num_lines: int = 0


class LogRateLimit(logging.Filter):
    """Passes MAX_LINES of each kind per PERIOD_S seconds.

    The first line of the next period has a field with the number of dropped lines.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns monotonic seconds."""
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False to drop the line."""
        key = _kind_of(record)
        if key is None:
            return True
        if key not in self._kinds and len(self._kinds) >= MAX_KINDS:
            key = ("", "")
        now = self._clock()
        kind = self._kinds.setdefault(key, _Kind(now))
        if now - kind.since_s >= PERIOD_S:
            num_dropped = kind.num_lines - MAX_LINES
            if num_dropped > 0:
                record.fields = {**getattr(record, "fields", {}), "left_out_before": num_dropped}
            kind.since_s, kind.num_lines = now, 0
        kind.num_lines += 1
        return kind.num_lines <= MAX_LINES


def _kind_of(record: logging.LogRecord) -> tuple[str, str] | None:
    """Return the kind under which the line is counted; None for lines that are never dropped."""
    if getattr(record, "fields", {}).get("outcome") == "rejected":
        return record.name, "rejected"
    return (record.name, str(record.msg)) if record.levelno >= logging.WARNING else None
