"""Send the requests of a batch, many at a time, and record each answer."""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import orjson

from server.batch.journal import Journal
from server.batch.lines import BatchError, BatchLine
from server.fairness.event_loop import off_loop, uninterrupted

RETRIED = frozenset({408, 429, 503})  # the server is busy, loading or restarting
OWN_LIMIT = "'queue_timeout_s'"  # named by a 503: the line's own limit has passed, and would again
MAX_WAIT_S = 30.0  # between two tries
GIVE_UP_S = 600.0  # without any answer from the server
INLINE_BYTES = 1 << 16  # an answer with a longer body is written in a thread
LINES_AT_A_TIME = 16  # read ahead: a hop to a thread costs more than most lines


class NoAnswerError(Exception):
    """The server gave no whole answer. One line that names the server."""


@dataclass(frozen=True)
class Answer:
    """Response to one line.

    `retry_after_s`: 0 if the response does not say it. `is_json`: the body is known to be JSON on one line. `notes`:
    the headers that say which parts of the request were ignored or repaired.
    """

    status: int
    request_id: str
    body: bytes | bytearray
    retry_after_s: float = 0.0
    is_json: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)


NOTES = ("x-smoe-ignored-params", "x-smoe-repaired")
Send = Callable[[BatchLine], Awaitable[Answer]]  # may raise NoAnswerError


@dataclass
class Progress:
    """Counts of a run. `num_done` includes the answers of earlier runs, `num_failed` only this run's."""

    num_lines: int
    num_done: int = 0
    num_failed: int = 0  # answered with a status other than 200


class Runner:
    """Runs the lines of a batch that have no answer yet."""

    def __init__(
        self,
        send: Send,
        journal: Journal,
        progress: Progress,
        on_progress: Callable[[Progress], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        first_wait_s: float = 1.0,
    ) -> None:
        """`on_progress` is called after each answer. `clock`: monotonic seconds. `first_wait_s`: before a retry."""
        self._send = send
        self._reading = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._read: deque[BatchLine] = deque()
        self._reading_ahead: asyncio.Task[list[BatchLine]] | None = None
        self._journal = journal
        self._progress = progress
        self._on_progress = on_progress
        self._clock = clock
        self._first_wait_s = first_wait_s
        self._answered_s = clock()

    async def run(self, lines: Iterable[BatchLine], concurrency: int) -> None:
        """Answer all lines, `concurrency` at a time.

        Raises BatchError if the server is gone for GIVE_UP_S, OSError if an answer cannot be written.
        """
        open_lines = (line for line in lines if line.custom_id not in self._journal.done)
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(concurrency):
                    workers.create_task(self._work(open_lines))
        finally:
            if self._reading_ahead is not None:
                self._reading_ahead.cancel()

    async def _work(self, lines: Iterator[BatchLine]) -> None:
        while (line := await self._next(lines)) is not None:
            answer = await self._answer(line)
            async with self._writing:
                await uninterrupted(
                    off_loop(partial(self._record, line, answer), heavy=len(answer.body) > INLINE_BYTES)
                )
            self._progress.num_done += 1
            self._progress.num_failed += answer.status != 200
            self._on_progress(self._progress)

    def _record(self, line: BatchLine, answer: Answer) -> None:
        """Append an answer to the journal. Blocks while a large body is written."""
        is_kept = answer.is_json and answer.status == 200
        parsed = {} if is_kept else {"body": _json(answer.body)}
        self._journal.append(_output_line(line, answer, parsed), answer.body if is_kept else None)

    async def _next(self, lines: Iterator[BatchLine]) -> BatchLine | None:
        """Return the next line. Lines are read ahead in a thread: no request waits while long lines are parsed."""
        async with self._reading:
            if not self._read:
                self._read.extend(await (self._reading_ahead or _read_some(lines)))
                self._reading_ahead = asyncio.create_task(_read_some(lines)) if self._read else None
            return self._read.popleft() if self._read else None

    async def _answer(self, line: BatchLine) -> Answer:
        """Send the line until the server answers it."""
        wait_s = self._first_wait_s
        while True:
            try:
                answer = await self._send(line)
                self._answered_s = self._clock()
                if answer.status not in RETRIED or OWN_LIMIT in _error_message(_json(answer.body)):
                    return answer
                wait_s = max(wait_s, answer.retry_after_s)
            except NoAnswerError as error:
                if self._clock() - self._answered_s > GIVE_UP_S:
                    raise BatchError(f"{error}, for {GIVE_UP_S:g} s") from None
            await asyncio.sleep(min(wait_s, MAX_WAIT_S))
            wait_s *= 2


async def _read_some(lines: Iterator[BatchLine]) -> list[BatchLine]:
    return await asyncio.to_thread(lambda: list(islice(lines, LINES_AT_A_TIME)))


def _output_line(line: BatchLine, answer: Answer, parsed: Mapping[str, object]) -> dict[str, object]:
    """Return the line of an answer, with its response last: journal.py finds the rest without parsing the response.

    `parsed` has its body; without one the journal is to write the body as it came.
    """
    message = _error_message(parsed.get("body"))
    notes = {"headers": answer.notes} if answer.notes else {}
    return {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": line.custom_id,
        "error": None if answer.status == 200 else {"code": str(answer.status), "message": message},
        "response": {"status_code": answer.status, "request_id": answer.request_id, **notes, **parsed},
    }


def _error_message(body: object) -> str:
    message = _error_of(body).get("message")
    return str(message) if message else "the server gave no message"


def _error_of(body: object) -> dict[str, object]:
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _json(body: bytes | bytearray) -> object:
    try:
        return orjson.loads(body)
    except ValueError:
        return None


def seconds(retry_after: str | None) -> float:
    """Return the seconds of a Retry-After header; 0 if it is absent or a date."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else 0.0
