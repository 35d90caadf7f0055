"""The output of a batch: one line per answered request, which is also the record of what is done.

A line is appended when its answer is complete, and never beside another one. A kill can only tear the last line; the
next run removes it and sends that request again. So each request is in the output exactly once when a run ends.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from server.batch.lines import BatchError, go_on

BEGIN = b'{"'  # of every line
OF_INPUTS = frozenset({"method", "url", "body"})  # members of a batch's input, which no answer has
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

    def append(self, answer: Mapping[str, object], body: bytes | bytearray | None = None) -> None:
        """Write one line, or nothing. `answer` has a "custom_id", an "error" and, last, a "response". Raises OSError.

        `body`: JSON on one line, which becomes the last member of the response. It may have many megabytes, so it is
        neither parsed nor copied, and the interpreter's lock is free while it is written.
        """
        text = orjson.dumps(answer)
        pieces = [text, b"\n"] if body is None else [text.removesuffix(b"}}") + b',"body":', body, b"}}\n"]
        try:
            self._write(pieces)
        except BaseException:
            os.ftruncate(self._file, self._num_whole)  # another line may follow
            raise
        self._num_whole += sum(map(len, pieces))
        self.num_failed += answer.get("error") is not None

    def _write(self, pieces: Iterable[bytes | bytearray]) -> None:
        remaining = [memoryview(piece) for piece in pieces]
        while remaining:
            num_bytes = os.writev(self._file, remaining)
            while remaining and num_bytes >= len(remaining[0]):
                num_bytes -= len(remaining.pop(0))
            if num_bytes:
                remaining[0] = remaining[0][num_bytes:]

    def _lock(self) -> None:
        """Lock the file; the system unlocks it when the process ends, however it ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BatchError(f"{self._path}: another run writes to it") from None

    def _read(self, before_each: Callable[[], None]) -> set[str]:
        done: set[str] = set()
        self._num_whole = 0  # bytes of whole lines
        with os.fdopen(os.dup(self._file), "rb") as file:
            for number, line in enumerate(file, start=1):
                before_each()
                if not line.endswith(b"\n"):
                    self._check_torn(line, number)
                    break
                done.add(self._custom_id(line, number))
                self._num_whole += len(line)
        os.ftruncate(self._file, self._num_whole)
        return done

    def _check_torn(self, line: bytes, number: int) -> None:
        """Raise BatchError for a last line, without its end, that no run has begun: it may be somebody's only copy."""
        if not line.startswith(BEGIN[: len(line)]):
            raise self._foreign(number)
        with contextlib.suppress(ValueError):  # torn indeed
            json.loads(line)
            self._custom_id(line, number)

    def _foreign(self, number: int) -> BatchError:
        return BatchError(f"{self._path}, line {number}: not a line that a run has written")

    def _custom_id(self, line: bytes, number: int) -> str:
        try:
            answer = head_of(line)
            custom_id = str(answer["custom_id"])
        except (ValueError, KeyError, TypeError):
            raise self._foreign(number) from None
        if not answer.keys().isdisjoint(OF_INPUTS):
            raise self._foreign(number)
        self.num_failed += answer.get("error") is not None
        return custom_id
