"""Progress of a benchmark's run: a line that is redrawn on a terminal, one line elsewhere."""

import time
from collections.abc import Callable
from typing import TextIO

REDRAW_S = 0.2


class RunProgress:
    """Counts the requests of one run that have ended."""

    def __init__(self, out: TextIO, name: str, num_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._name = name
        self._num_requests = num_requests
        self._clock = clock
        self._num_ended = 0
        self._drawn_s = clock()
        self._is_terminal = out.isatty()
        self._write(f"{name}, {num_requests} requests", "" if self._is_terminal else "\n")

    def request_ended(self) -> None:
        """Count one request; redraw at most each REDRAW_S seconds."""
        self._num_ended += 1
        if self._is_terminal and self._clock() - self._drawn_s >= REDRAW_S:
            self._drawn_s = self._clock()
            self._write(f"\r{self._name}, {self._num_ended} of {self._num_requests} requests\x1b[K")

    def end(self) -> None:
        """Remove the line from a terminal: the table follows."""
        if self._is_terminal:
            self._write("\r\x1b[K")

    def _write(self, text: str, end: str = "") -> None:
        self._out.write(text + end)
        self._out.flush()
