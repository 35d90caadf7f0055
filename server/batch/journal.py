"""The output of a batch: one line per answered request, which is also the record of what is done.

A line is appended in one write when its answer is complete. A kill can only tear the last line; the next run removes
it and sends that request again. So each request is in the output exactly once when a run ends.
"""

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from server.batch.lines import BatchError, go_on

HEAD_END = b',"response":'  # found in no text of a line: its quotation marks would have backslashes


def head_of(line: bytes) -> Any:
    """Return a line's members, without the response if it is the last one. Raises ValueError.

    A response may have many megabytes, and whoever parses it holds the interpreter's lock.
    """
    end = line.find(HEAD_END)
    members: Any = json.loads(line[:end] + b"}") if end >= 0 else {}
    if "error" not in members:  # an earlier version wrote it last
        members = json.loads(line)
    return members


class Journal:
    """The output file, open for appending. One process at a time may hold it.

    `done`: the custom ids of the lines that it had when it was opened: an input has each id once, so a run need not
    remember its own. `num_failed`: how many lines are errors.
    """

    def __init__(self, path: Path, before_each: Callable[[], None] = go_on) -> None:
        """Open or create the file, and remove a torn last line.

        Raises BatchError, OSError, and what `before_each` raises before a line.
        """
        self._path = path
        self.num_failed = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._lock()
            self.done = self._read(before_each)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._file)

    def append(self, answer: Mapping[str, object]) -> None:
        """Write one line. `answer` has a "custom_id", an "error" and, last, a "response". Raises OSError."""
        remaining = orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE)
        while remaining:
            remaining = remaining[os.write(self._file, remaining) :]
        self.num_failed += answer.get("error") is not None

    def _lock(self) -> None:
        """Lock the file; the system unlocks it when the process ends, however it ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BatchError(f"{self._path}: another run writes to it") from None

    def _read(self, before_each: Callable[[], None]) -> set[str]:
        done: set[str] = set()
        num_whole = 0  # bytes of whole lines
        with os.fdopen(os.dup(self._file), "rb") as file:
            for number, line in enumerate(file, start=1):
                before_each()
                if not line.endswith(b"\n"):
                    break
                done.add(self._custom_id(line, number))
                num_whole += len(line)
        os.ftruncate(self._file, num_whole)
        return done

    def _custom_id(self, line: bytes, number: int) -> str:
        try:
            answer = head_of(line)
            custom_id = str(answer["custom_id"])
        except (ValueError, KeyError, TypeError):
            raise BatchError(f"{self._path}, line {number}: not a line that a run has written") from None
        self.num_failed += answer.get("error") is not None
        return custom_id
