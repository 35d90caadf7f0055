"""The file of --step-log: a JSON line for each step, when it began, how long it took and which work it did.

`smoe bench steps` reads it (engine/planning/logged_steps.py has the lines). No text and no token ids.
"""

import errno
import logging
import os
import time
from collections.abc import Callable
from io import FileIO

import msgspec

from engine.errors import EngineConfigError
from engine.planning.logged_steps import LoggedRequest, LoggedStep
from engine.planning.step_shape import StepShape, shape_of
from engine.scheduling.step_plan import StepPlan
from engine.types import Request

log = logging.getLogger("smoe.engine")


def open_step_log(path: str) -> FileIO:
    """Open the file to append to it. Raises EngineConfigError, also for a pipe, whose open would wait for a reader."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise EngineConfigError(f"--step-log {path}: is not a regular file")
    try:
        return FileIO(path, "a+")
    except OSError as error:
        raise EngineConfigError(f"--step-log {path}: {error.strerror}") from None


def check_step_log(path: str) -> None:
    """Open the file as an engine does, and remove it if it is new. Raises EngineConfigError."""
    is_new = not os.path.lexists(path)
    open_step_log(path).close()
    if is_new:
        os.unlink(path)


class StepLog:
    """Writer of the log. Its calls follow the engine's loop: begin, added, planned, end."""

    def __init__(self, file: FileIO, window: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to `file`, which is open. `window`: of attention."""
        self._file: FileIO | None = file
        self._before = b"\n" if _ends_within_a_line(file) else b""
        self._window = window
        self._clock = clock
        self._begun_s = 0.0
        self._added: list[LoggedRequest] = []
        self._shape: StepShape | None = None

    def begin(self) -> None:
        """Begin a step: when the one before it has ended or, after a pause, when a request has come."""
        self._begun_s = self._clock()

    def added(self, request: Request) -> None:
        """Note a request that the engine has received."""
        arrived = LoggedRequest(request.arrival_s, len(request.prompt_token_ids), request.params.max_tokens)
        if self._file is not None:
            self._added.append(arrived)

    def planned(self, plan: StepPlan) -> None:
        """Note what the step will compute."""
        self._shape = shape_of(plan, self._window) if plan.chunks else None

    def end(self) -> None:
        """Write the step, unless it computed nothing. After a failure nothing more is written."""
        if self._shape is None or self._file is None:
            return
        step = LoggedStep(self._begun_s, self._clock() - self._begun_s, self._shape, self._added)
        self._shape, self._added = None, []
        line, self._before = self._before + msgspec.json.encode(step) + b"\n", b""
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.EIO, "a line was written only in part")
        except OSError as error:
            log.warning("--step-log: no more steps are written: %s", error.strerror)
            self._file = None


def _ends_within_a_line(file: FileIO) -> bool:
    """Return whether the last line was written only in part, as on a full disk."""
    return file.tell() > 0 and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
