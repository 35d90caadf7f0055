"""Lines that clients can cause as often as they like, such as refusals: some a minute of each kind, and a count of the
rest. What a request used is always told: sums over the log stay true."""

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
    """Passes MAX_LINES of a kind in each PERIOD_S; the first line after that has the number of those left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives monotonic seconds."""
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a line too many."""
        key = _kind_of(record)
        if key is None:
            return True
        if key not in self._kinds and len(self._kinds) >= MAX_KINDS:
            key = ("", "")
        now = self._clock()
        kind = self._kinds.setdefault(key, _Kind(now))
        if now - kind.since_s >= PERIOD_S:
            num_left_out = kind.num_lines - MAX_LINES
            if num_left_out > 0:
                record.fields = {**getattr(record, "fields", {}), "left_out_before": num_left_out}
            kind.since_s, kind.num_lines = now, 0
        kind.num_lines += 1
        return kind.num_lines <= MAX_LINES


def _kind_of(record: logging.LogRecord) -> tuple[str, str] | None:
    """What counts together; None for lines that are never left out."""
    if getattr(record, "fields", {}).get("outcome") == "rejected":
        return record.name, "rejected"
    return (record.name, str(record.msg)) if record.levelno >= logging.WARNING else None
