"""Send the requests of a batch to a server, many at a time, and record each answer."""

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from server.batch.journal import Journal
from server.batch.lines import BatchError, BatchLine
from server.bench.http_client import Endpoint, HttpError, request

RETRIED = frozenset({408, 429, 503})  # the server is busy, loading or restarting
MAX_WAIT_S = 30.0  # between two tries
GIVE_UP_S = 600.0  # without any answer from the server


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
        endpoint: Endpoint,
        journal: Journal,
        progress: Progress,
        on_progress: Callable[[Progress], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        first_wait_s: float = 1.0,
    ) -> None:
        """`on_progress` is called after each answer. `clock`: monotonic seconds. `first_wait_s`: before a retry."""
        self._endpoint = endpoint
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
        async with asyncio.TaskGroup() as workers:
            for _ in range(concurrency):
                workers.create_task(self._work(open_lines))

    async def _work(self, lines: Iterator[BatchLine]) -> None:
        for line in lines:
            status, request_id, body = await self._answer(line)
            self._journal.append(_output_line(line, status, request_id, body))
            self._progress.num_done += 1
            self._progress.num_failed += status != 200
            self._on_progress(self._progress)

    async def _answer(self, line: BatchLine) -> tuple[int, str, object]:
        """Send the line until the server answers it, and return status, request id and body."""
        wait_s = self._first_wait_s
        while True:
            try:
                async with request(self._endpoint, "POST", line.url, line.body_bytes) as response:
                    body = _json(await response.body())
                self._answered_s = self._clock()
                if response.status not in RETRIED:
                    return response.status, response.headers.get("x-request-id", ""), body
                wait_s = max(wait_s, _seconds(response.headers.get("retry-after")))
            except (OSError, HttpError) as error:
                if self._clock() - self._answered_s > GIVE_UP_S:
                    raise BatchError(f"no answer from {self._endpoint.url} for {GIVE_UP_S:g} s ({error})") from None
            await asyncio.sleep(min(wait_s, MAX_WAIT_S))
            wait_s *= 2


def _output_line(line: BatchLine, status: int, request_id: str, body: object) -> dict[str, object]:
    response = {"status_code": status, "request_id": request_id, "body": body}
    error = None if status == 200 else {"code": str(status), "message": _error_message(body)}
    return {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": line.custom_id, "response": response, "error": error}


def _error_message(body: object) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return str(message) if message else "the server gave no message"


def _json(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else 0.0
