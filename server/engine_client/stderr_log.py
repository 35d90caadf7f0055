"""Copy the engine process' standard error into the server's log.

The engine never waits for a slow reader of the server's log: it writes into a pipe that the event loop empties, and
server/observability/log_stream.py drops lines that cannot be written in time.
"""

import asyncio
import logging
import re

MAX_LINE_BYTES = 1 << 14  # longer lines are split

_WITH_LEVEL = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) (\S+): (.*)", re.DOTALL)  # as engine/process.py writes


class StderrLog(asyncio.Protocol):
    """Splits the bytes into lines and logs them.

    A line without a level, such as one of a traceback or of a library, gets the level of the line before it.
    """

    def __init__(self) -> None:
        self.closed = asyncio.Event()  # set once every process that writes to it has ended
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
        self.closed.set()
        if self._rest:
            self._log(self._rest)

    def _log(self, line: bytes) -> None:
        text = line.decode(errors="backslashreplace").rstrip()
        if match := _WITH_LEVEL.fullmatch(text):
            self._level = logging.getLevelNamesMapping()[match[1]]
            self._logger = logging.getLogger(match[2])
            text = match[3]
        self._logger.log(self._level, "%s", text)
