"""What the engine process writes to its standard error, as lines of the server's own log.

The engine never waits for whoever reads the server's log, or does not: it writes into a pipe that the event loop
empties, and server/observability/log_stream.py drops what nobody takes.
"""

import asyncio
import logging
import re

MAX_LINE_BYTES = 1 << 14  # a longer one is cut into several

_LEVELLED = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) (\S+): (.*)", re.DOTALL)  # as engine/process.py writes


class StderrLog(asyncio.Protocol):
    """Cuts the bytes into lines. What follows a line with a level has that level: tracebacks, texts of libraries."""

    def __init__(self) -> None:
        self._rest = b""
        self._level = logging.WARNING
        self._logger = logging.getLogger("smoe.engine")

    def data_received(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._log(line)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._log(self._rest)

    def _log(self, line: bytes) -> None:
        text = line.decode(errors="backslashreplace").rstrip()
        if levelled := _LEVELLED.fullmatch(text):
            self._level = logging.getLevelNamesMapping()[levelled[1]]
            self._logger = logging.getLogger(levelled[2])
            text = levelled[3]
        self._logger.log(self._level, "%s", text)
