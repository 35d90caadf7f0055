"""Write log lines without blocking. A full pipe, a full disk or a closed stream drops lines and delays no request."""

import contextlib
import io
import json
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Literal

import orjson

from server.observability.log_rate_limit import LogRateLimit

STDERR = 2
QUEUE_LENGTH = 10_000
CLOSE_TIMEOUT_S = 1.0
LEVELS = {"WARNING: ": logging.WARNING, "smoe: ": logging.ERROR}  # of lines without a logger, by their beginnings
_WORD = re.compile(r"[!-~]*")


class TextFormatter(logging.Formatter):
    """Format "2026-11-28T16:02:11 INFO request finished request_id=... outcome=stop"."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the message and the record's fields; a traceback follows below."""
        fields = "".join(f" {name}={_quote_if_needed(value)}" for name, value in getattr(record, "fields", {}).items())
        return super().formatMessage(record) + fields


def _quote_if_needed(value: object) -> str:
    """Return the value as text, quoted if it could be mistaken for another field or line."""
    text = str(value)
    return text if _WORD.fullmatch(text) else json.dumps(text)


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level, logger, message and the record's fields as one object."""
        line = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="seconds"),  # RFC 3339
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def json_line(text: str) -> str:
    """Return a line about the start or the end of the server as JSON; "WARNING: ..." and "smoe: ..." have the levels
    warning and error."""
    level, message = next(
        ((level, text.removeprefix(prefix)) for prefix, level in LEVELS.items() if text.startswith(prefix)),
        (logging.INFO, text),
    )
    printable = message.encode(errors="backslashreplace").decode()  # a path need not be UTF-8
    return JsonFormatter().format(logging.LogRecord("smoe.start", level, "", 0, printable, None, None))


class NonBlockingStream(io.TextIOBase):
    """Text stream that never blocks its writers: a thread does the writing. While that thread is blocked, text is
    dropped once the queue is full.

    The thread writes to the file descriptor directly: it holds no lock for which the process would wait at exit.
    """

    def __init__(self, fd: int, queue_length: int = QUEUE_LENGTH, styled: Callable[[str], str] = str) -> None:
        """`styled`: gives the stream's own lines the form of the log."""
        self.num_dropped = 0
        self._styled = styled
        self._fd = fd
        self._texts: queue.Queue[str | None] = queue.Queue(queue_length)
        self._writer = threading.Thread(target=self._write_texts, name="log-writer", daemon=True)
        self._writer.start()

    def write(self, text: str) -> int:
        """Queue the text, or drop it as a whole. Never blocks."""
        try:
            self._texts.put_nowait(text)
        except queue.Full:
            self.num_dropped += 1
        return len(text)

    def isatty(self) -> bool:
        """Return True if the descriptor is a terminal."""
        return os.isatty(self._fd)

    def end(self) -> None:
        """Let the thread write what is queued, for at most CLOSE_TIMEOUT_S. Idempotent."""
        with contextlib.suppress(queue.Full):
            self._texts.put_nowait(None)
            self._writer.join(CLOSE_TIMEOUT_S)

    def _write_texts(self) -> None:
        num_reported = 0
        while (text := self._texts.get()) is not None:
            self._write(text)
            num_lost = self.num_dropped - num_reported
            if num_lost:
                lost = f"{num_lost} log lines were dropped because they were not read in time"
                self._write(f"{self._styled(lost)}\n")
                num_reported += num_lost

    def _write(self, text: str) -> None:
        rest = text.encode(errors="backslashreplace")
        with contextlib.suppress(OSError):  # a full disk or a closed pipe cannot be reported anywhere
            while rest:
                rest = rest[os.write(self._fd, rest) :]


@contextlib.contextmanager
def logging_to(
    fd: int = STDERR, *, level: str = "info", style: Literal["text", "json"] = "text", queue_length: int = QUEUE_LENGTH
) -> Iterator[NonBlockingStream]:
    """Send all logging of the process to `fd` inside the block, through the stream that it yields.

    uvicorn's loggers start at level "error", because clients can cause its warnings at will.
    """
    stream = NonBlockingStream(fd, queue_length, json_line if style == "json" else str)
    handler = logging.StreamHandler(stream)
    handler.addFilter(LogRateLimit())
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(max(logging.ERROR, root.level))
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        stream.end()
