"""`smoe run-batch`: check the input, continue an earlier output, show the progress."""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from server.batch.journal import Journal
from server.batch.lines import BatchError, BatchLine, read_lines
from server.batch.runner import NOTES, Answer, NoAnswerError, Progress, Runner, Send, seconds
from server.bench.http_client import Endpoint, HttpError, reason_of, request

BAR_CHARS = 24
REDRAW_S = 0.2
SOME_FAILED = 1  # exit code if a request was answered with an error


def run(source: Path, output: Path, url: str, api_key: str | None, concurrency: int) -> int:
    """Run the batch of `source` into `output` and return the exit code. Raises BatchError."""
    try:
        endpoint = Endpoint.parse(url, api_key)
        _check_files(source, output)
        ids = {line.custom_id for line in read_lines(source)}
        with Journal(output) as journal:
            if not journal.done <= ids:
                raise BatchError(f"{output}: has answers to other requests than those of {source}")
            progress = Progress(len(ids), len(journal.done))
            del ids  # memory does not grow from here on
            bar = ProgressBar(sys.stderr, len(journal.done))
            bar.draw(progress)
            runner = Runner(sender(endpoint), journal, progress, bar.update)
            asyncio.run(runner.run(read_lines(source, is_checked=True), concurrency))
            bar.end(progress)
    except OSError as error:
        raise BatchError(f"{error.filename or output}: {error.strerror or error}") from None
    except ValueError as error:  # of the URL
        raise BatchError(str(error)) from None
    except ExceptionGroup as group:
        raise _first(group) from None
    return SOME_FAILED if progress.num_failed else 0


def _check_files(source: Path, output: Path) -> None:
    """Raise BatchError for an input that can be read only once, or that is the output."""
    if source.is_fifo() or source.is_char_device() or source.is_socket():
        raise BatchError(f"{source}: should be a file, which is read twice; a pipe can be read only once")
    if output.exists() and source.exists() and output.samefile(source):
        raise BatchError(f"{output}: is the input; the answers need a file of their own")


def sender(endpoint: Endpoint) -> Send:
    """Return a function that sends lines to a server by HTTP."""

    async def send(line: BatchLine) -> Answer:
        try:
            async with request(endpoint, "POST", line.url, line.body_bytes()) as response:
                body = await response.body()
        except (OSError, HttpError) as error:
            raise NoAnswerError(f"no answer from {endpoint.url} ({reason_of(error)})") from None
        headers = response.headers
        wait_s, notes = seconds(headers.get("retry-after")), {name: headers[name] for name in NOTES if name in headers}
        return Answer(response.status, headers.get("x-request-id", ""), body, wait_s, notes=notes)

    return send


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """Return the first error of a run whose requests failed together."""
    error = group.exceptions[0]
    if isinstance(error, OSError):
        return BatchError(str(error.strerror or error))
    return error


class ProgressBar:
    """Bar on a terminal; one line at the end elsewhere."""

    def __init__(self, out: TextIO, num_before: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`num_before`: answers of earlier runs, which do not count in the pace."""
        self._out = out
        self._num_before = num_before
        self._clock = clock
        self._start_s = self._drawn_s = clock()

    def update(self, progress: Progress) -> None:
        """Draw the bar, at most each REDRAW_S seconds."""
        if self._clock() - self._drawn_s >= REDRAW_S:
            self.draw(progress)

    def draw(self, progress: Progress) -> None:
        """Draw the bar now, if the output is a terminal."""
        self._drawn_s = self._clock()
        if self._out.isatty():
            self._out.write(f"\r{self.text(progress)}\x1b[K")
            self._out.flush()

    def end(self, progress: Progress) -> None:
        """Write the last state and end the line."""
        self._out.write(f"\r{self.text(progress)}\x1b[K\n" if self._out.isatty() else f"{self.text(progress)}\n")

    def text(self, progress: Progress) -> str:
        """Return the bar with its figures."""
        share = progress.num_done / progress.num_lines if progress.num_lines else 1.0
        filled = round(BAR_CHARS * share)
        pace = (progress.num_done - self._num_before) / max(1e-9, self._clock() - self._start_s)
        failed = f", {progress.num_failed:,} failed" if progress.num_failed else ""
        left = progress.num_lines - progress.num_done
        rest = f", {left / pace:,.0f} s left" if left and pace else ""
        bar = "#" * filled + "." * (BAR_CHARS - filled)
        return f"[{bar}] {progress.num_done:,} of {progress.num_lines:,}{failed}, {pace:,.1f}/s{rest}"
