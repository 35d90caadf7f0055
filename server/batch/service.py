"""The batches of one server: started oldest first, one at a time for each owner, and continued after a kill."""

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from server.batch.journal import Journal
from server.batch.lines import BatchLine, LineError, read_lines
from server.batch.results import write_results
from server.batch.runner import Progress, Runner, Send
from server.batch.store import OPEN, Object, Store, try_lock
from server.fairness.event_loop import uninterrupted

MAX_LINES = 50_000  # OpenAI's limit
MAX_ENDED = 1000  # batches of one owner that are kept after their end
LOCK_RETRY_S = 0.5  # the previous process may still hold the folder, after SIGHUP
ANSWERED = ("in_progress", "finalizing", "cancelling")  # status of open batches that may have answers
POLL_S = 5.0  # another process, which is about to end, may have stored or cancelled a batch

T = TypeVar("T")
log = logging.getLogger(__name__)


class ServerEndsError(Exception):
    """The server is about to end. The batch continues at the next start."""


class BatchService:
    """Runs the batches of a store. All methods belong to one event loop."""

    def __init__(
        self,
        store: Store,
        send_for: Callable[[int], Send],
        owners: Mapping[str, int],
        *,
        concurrency: int,
        retention_s: float,
        max_line_bytes: int | None = None,
    ) -> None:
        """`send_for`: makes the sender of a tenant. `owners`: the tenant of each owner whose batches may run.

        `concurrency`: requests of one batch at a time. `retention_s`: how long a batch and its results are kept.
        `max_line_bytes`: of a file's line, which is a request's body; None sets no bound.
        """
        self.store = store
        self._send_for = send_for
        self._owners = owners
        self._concurrency = concurrency
        self._retention_s = retention_s
        self._max_line_bytes = max_line_bytes
        self._changed = asyncio.Event()
        self._running: dict[str, str] = {}  # owner -> id of the batch that runs
        self._stops: dict[str, asyncio.Event] = {}  # by batch id
        self._progress: dict[str, Progress] = {}  # by batch id
        self._is_ending = threading.Event()  # threads look at it before each line

    def wake(self) -> None:
        """Look for new batches."""
        self._changed.set()

    def stop(self, batch_id: str) -> None:
        """Stop a batch whose status has become "cancelling"."""
        if batch_id in self._stops:
            self._stops[batch_id].set()
        self._changed.set()

    def with_counts(self, batch: Object) -> Object:
        """Return the batch with the counts of this moment."""
        progress = self._progress.get(batch["id"])
        return batch if progress is None else batch | {"request_counts": _counts(progress)}

    async def run(self) -> None:
        """Run batches until cancelled. Another process that runs batches of this folder must end first.

        When this has ended, no thread holds a journal or writes results: the next process may start with them.
        """
        self._is_ending.clear()
        with contextlib.ExitStack() as stack:
            descriptor = os.open(self.store.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, descriptor)
            while not try_lock(descriptor):  # noqa: ASYNC110 (another process holds it)
                await asyncio.sleep(LOCK_RETRY_S)
            async with asyncio.TaskGroup() as tasks:
                try:
                    await self._run_rounds(tasks)
                finally:
                    self._is_ending.set()

    async def _run_rounds(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            self._changed.clear()
            await self._delete_ended()
            await self._start_open(tasks)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._changed.wait()

    async def _delete_ended(self) -> None:
        """Delete ended batches that are too old or too many. An error is logged; the next call tries again."""
        try:
            before_s = self.store.clock() - self._retention_s
            number = await asyncio.to_thread(self.store.delete_ended, MAX_ENDED, before_s)
            await asyncio.to_thread(self.store.delete_parts)
        except (OSError, sqlite3.Error):
            log.exception("ended batches could not be deleted")
        else:
            if number:
                log.info("deleted %d ended batches with their results", number)

    async def _start_open(self, tasks: asyncio.TaskGroup) -> None:
        """Start the next batch of each owner who has none. An error is logged; the next call tries again."""
        try:
            batches = await asyncio.to_thread(self.store.open_batches)
        except sqlite3.Error:
            log.exception("the batches could not be read")
            return
        for owner, batch in batches:
            if batch["status"] == "cancelling" and batch["id"] in self._stops:
                self._stops[batch["id"]].set()
            if owner in self._owners and owner not in self._running:
                self._running[owner] = batch["id"]
                tasks.create_task(self._run_one(owner, batch))

    async def _run_one(self, owner: str, batch: Object) -> None:
        """Run a batch to its end. One whose failure cannot be stored stays open: a later round continues it."""
        batch_id = batch["id"]
        self._stops[batch_id] = asyncio.Event()
        has_ended = True
        try:
            # A cancellation before this line is in the state that is read here; a later one sets the event.
            current = await asyncio.to_thread(self.store.get, "batches", owner, batch_id)
            if current is not None and current["status"] in OPEN:
                await self._advance(owner, current)
        except Exception as error:  # a fault in one batch must not end the others
            log.exception("batch %s failed", batch_id)
            has_ended = await self._stopped_by(error, owner, batch_id)
        finally:
            del self._running[owner], self._stops[batch_id]
            self._progress.pop(batch_id, None)
            if has_ended:  # otherwise the next round is POLL_S away, as the disk may be full for long
                self._changed.set()

    async def _stopped_by(self, error: Exception, owner: str, batch_id: str) -> bool:
        """End a batch that an error stopped, with the answers that it has if they can be written.

        Returns False if the end cannot be stored.
        """
        while isinstance(error, ExceptionGroup):  # of the requests that ran together
            error = error.exceptions[0]
        reason = getattr(error, "strerror", None) or "its results could not be written"
        fault = {"code": "server_error", "message": f"The batch stopped: {reason}.", "line": None}
        try:
            batch = await asyncio.to_thread(self.store.get, "batches", owner, batch_id)
            if batch is not None and batch["status"] in ANSWERED:
                await self._finish(owner, batch, "failed", _errors(fault))
                return True
        except Exception:  # whatever it is must not end the other batches
            log.exception("the answers of batch %s could not be written", batch_id)
        try:
            await self._fail(batch_id, fault)
        except Exception:
            log.exception("the failure of batch %s could not be stored; it is tried again", batch_id)
            return False
        return True

    async def _advance(self, owner: str, batch: Object) -> None:
        """Bring the batch from its status, whichever that is, to its end."""
        if batch["status"] == "validating":
            num_lines = await self._validate(batch)
            if num_lines is None:
                return
            counts = {"total": num_lines, "completed": 0, "failed": 0}
            changes = {"status": "in_progress", "in_progress_at": self._now(), "request_counts": counts}
            batch = await asyncio.to_thread(self.store.update_batch, batch["id"], ("validating",), changes)
        known_ends = {"cancelling": "cancelled", "finalizing": "completed"}
        end = known_ends.get(batch["status"]) or await self._answer(owner, batch)
        await self._finish(owner, batch, end)

    async def _validate(self, batch: Object) -> int | None:
        """Return the number of requests; None if the file is no batch, which ends the batch."""
        path = self.store.content_path(batch["input_file_id"])

        def check() -> int:
            count = 0
            lines = read_lines(path, self._max_line_bytes, before_each=self._check_ending)
            for count, line in enumerate(lines, start=1):
                if line.url != batch["endpoint"]:
                    raise LineError(path, line.number, f"url must be the batch's endpoint, {batch['endpoint']}")
                if count > MAX_LINES:
                    raise LineError(path, line.number, f"a batch has at most {MAX_LINES} requests")
            if not count:
                raise LineError(path, 1, "the file has no requests")
            return count

        try:
            return await self._in_thread(check)
        except LineError as error:
            fault = {"code": "invalid_line", "message": f"Line {error.number}: {error.reason}.", "line": error.number}
            await self._fail(batch["id"], fault)
            return None

    async def _answer(self, owner: str, batch: Object) -> str:
        """Run the requests that have no answer yet; return how the batch ends."""
        with contextlib.ExitStack() as stack:  # it gets a journal that was opened after a cancellation, too
            path = self.store.journal_path(batch["id"])
            journal = await self._in_thread(lambda: stack.enter_context(Journal(path, self._check_ending)))
            progress = Progress(batch["request_counts"]["total"], len(journal.done), journal.num_failed)
            self._progress[batch["id"]] = progress
            send = self._send_for(self._owners[owner])
            runner = Runner(send, journal, progress, lambda _: None)
            run = asyncio.create_task(runner.run(self._lines(batch), self._concurrency))
            stop = asyncio.create_task(self._stops[batch["id"]].wait())
            try:
                time_left_s = max(0.0, batch["expires_at"] - self.store.clock())
                await asyncio.wait({run, stop}, timeout=time_left_s, return_when=asyncio.FIRST_COMPLETED)
                if run.done():
                    run.result()
                    return "completed"
                return "cancelled" if stop.done() else "expired"
            finally:
                run.cancel()
                stop.cancel()
                await asyncio.gather(run, stop, return_exceptions=True)

    async def _finish(self, owner: str, batch: Object, end: str, errors: Object | None = None) -> None:
        """Write the results and end the batch. Ids of results follow from the batch's: a repetition replaces them."""
        batch_id = batch["id"]
        if end == "completed":
            changes = {"status": "finalizing", "finalizing_at": self._now()}
            await asyncio.to_thread(self.store.update_batch, batch_id, ("in_progress",), changes)
        suffix = batch_id.removeprefix("batch_")
        ids = {"output_file_id": f"file-output-{suffix}", "error_file_id": f"file-error-{suffix}"}
        await self._in_thread(lambda: self._finish_blocking(owner, batch, end, ids, errors))

    def _finish_blocking(self, owner: str, batch: Object, end: str, ids: dict[str, str], errors: Object | None) -> None:
        journal_path = self.store.journal_path(batch["id"])
        with Journal(journal_path, self._check_ending) as journal:
            counts = {
                "total": batch["request_counts"]["total"],
                "completed": len(journal.done) - journal.num_failed,
                "failed": journal.num_failed,
            }
            changes = {"status": end, f"{end}_at": self._now(), "request_counts": counts, "errors": errors}
            lines = self._lines(batch) if end == "expired" else ()
            late = (line.custom_id for line in lines if line.custom_id not in journal.done)
            paths = [self.store.content_path(file_id) for file_id in ids.values()]
            try:
                write_results(journal_path, late, *paths, before_each=self._check_ending)
                self._end(owner, batch["id"], changes, ids)
            except BaseException:
                for file_id in ids.values():
                    self.store.discard(file_id)
                raise
        journal_path.unlink()

    def _end(self, owner: str, batch_id: str, changes: Object, ids: dict[str, str]) -> None:
        """End a batch with those of its results that are written."""
        paths = {name: self.store.content_path(file_id) for name, file_id in ids.items()}
        written = {name: path for name, path in paths.items() if path.exists()}
        files = {
            ids[name]: (f"{batch_id}_{name.removesuffix('_file_id')}.jsonl", path.stat().st_size)
            for name, path in written.items()
        }
        self.store.end_batch(owner, batch_id, changes | {name: ids[name] for name in written}, files)

    async def _fail(self, batch_id: str, fault: Object) -> None:
        """End a batch without results."""
        changes = {"status": "failed", "failed_at": self._now(), "errors": _errors(fault)}
        await asyncio.to_thread(self.store.update_batch, batch_id, OPEN, changes)

    def _lines(self, batch: Object) -> Iterator[BatchLine]:
        path = self.store.content_path(batch["input_file_id"])
        return read_lines(path, is_checked=True, before_each=self._check_ending)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run `work`, which calls `_check_ending`, in a thread. A cancellation waits for its end."""
        return await uninterrupted(asyncio.to_thread(work))

    def _check_ending(self) -> None:
        if self._is_ending.is_set():
            raise ServerEndsError

    def _now(self) -> int:
        return int(self.store.clock())


def _errors(fault: Object) -> Object:
    return {"object": "list", "data": [{"param": None, **fault}]}


def _counts(progress: Progress) -> dict[str, int]:
    completed = progress.num_done - progress.num_failed
    return {"total": progress.num_lines, "completed": completed, "failed": progress.num_failed}
