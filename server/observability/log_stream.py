"""Where log lines go. A full pipe, a full disk or a closed stream costs lines, never requests."""

import contextlib
import io
import json
import logging
import os
import queue
import re
import threading
from collections.abc import Iterator
from typing import Literal

import orjson

from server.observability.log_rate_limit import LogRateLimit

STDERR = 2
QUEUE_LENGTH = 10_000
CLOSE_PATIENCE_S = 1.0
_WORD = re.compile(r"[!-~]*")


class TextFormatter(logging.Formatter):
    """`16:02:11 INFO request finished request_id=... outcome=stop`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message and the record's fields; a traceback comes below."""
        fields = "".join(f" {name}={_one_word(value)}" for name, value in getattr(record, "fields", {}).items())
        return super().formatMessage(record) + fields


def _one_word(value: object) -> str:
    """As it is, or quoted where it could be taken for another field or another line."""
    text = str(value)
    return text if _WORD.fullmatch(text) else json.dumps(text)


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's fields next to time, level, logger and message."""
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


class NonBlockingStream(io.TextIOBase):
    """A text stream that never makes anybody wait: a thread of its own does the writing. When that one is stuck, what
    comes is dropped.

    The thread writes to the descriptor itself: it holds no lock that the process would wait for when it exits.
    """

    def __init__(self, fd: int, queue_length: int = QUEUE_LENGTH) -> None:
        self.num_dropped = 0
        self._fd = fd
        self._texts: queue.Queue[str | None] = queue.Queue(queue_length)
        self._writer = threading.Thread(target=self._write_texts, name="log-writer", daemon=True)
        self._writer.start()

    def write(self, text: str) -> int:
        """Never waits. One call's text is written, or dropped, as a whole."""
        try:
            self._texts.put_nowait(text)
        except queue.Full:
            self.num_dropped += 1
        return len(text)

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        return os.isatty(self._fd)

    def end(self) -> None:
        """Let the thread write what is queued, but not for longer than a moment. Idempotent."""
        with contextlib.suppress(queue.Full):
            self._texts.put_nowait(None)
            self._writer.join(CLOSE_PATIENCE_S)

    def _write_texts(self) -> None:
        num_reported = 0
        while (text := self._texts.get()) is not None:
            self._write(text)
            num_lost = self.num_dropped - num_reported
            if num_lost:
                self._write(f"{num_lost} log lines were dropped: nothing read them in time\n")
                num_reported += num_lost

    def _write(self, text: str) -> None:
        rest = text.encode(errors="backslashreplace")
        with contextlib.suppress(OSError):  # a full disk, a closed pipe: there is nowhere left to say so
            while rest:
                rest = rest[os.write(self._fd, rest) :]


@contextlib.contextmanager
def logging_to(
    fd: int = STDERR, *, level: str = "info", style: Literal["text", "json"] = "text", queue_length: int = QUEUE_LENGTH
) -> Iterator[NonBlockingStream]:
    """All of the process' logging goes to `fd` while the block runs, by way of the stream that it gets.

    uvicorn's own starts at "error": its warnings tell of what clients sent, as often as they like.
    """
    stream = NonBlockingStream(fd, queue_length)
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


def open_standard_streams() -> None:
    """Gives the descriptors 0, 1 and 2 to /dev/null where they are closed: else the next socket gets such a number, and
    a client the log lines."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        continue
    os.close(fd)
