"""One line of a terminal that is written again and again while something starts."""

import itertools
import time
from collections.abc import Callable
from typing import TextIO

from server.cli.terminal_text import escape_controls

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
TO_START, ERASE = "\r", "\x1b[K"


class StatusLine:
    """Shows words with a spinner and the seconds so far. Writes nothing to a file, a pipe or a plain terminal."""

    def __init__(self, stream: TextIO, *, is_on: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """`is_on`: the stream is a terminal that obeys control sequences."""
        self._stream = stream
        self._is_on = is_on
        self._clock = clock
        self._started_s = clock()
        self._frames = itertools.cycle(FRAMES)

    def show(self, words: str) -> None:
        """Replace the line."""
        if self._is_on:
            seconds = self._clock() - self._started_s
            line = f"{next(self._frames)} {escape_controls(words)}, {seconds:.0f} s"
            self._write(f"{TO_START}{ERASE}{line}")

    def clear(self) -> None:
        """Remove the line."""
        if self._is_on:
            self._write(f"{TO_START}{ERASE}")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
