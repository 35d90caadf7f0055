"""Name what blocks the event loop: the stack of any callback that runs for longer than 50 ms.

A thread asks the loop for a sign of life. If none comes in time, it sends SIGUSR2 to the loop's own thread, whose
signal handler gets the interrupted frame. Reading another thread's frames instead crashes the interpreter now and then:
they change while they are read.
"""

import asyncio
import contextlib
import logging
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

LIMIT_S = 0.05
INTERVAL_S = 0.025
MAX_FRAMES = 12

log = logging.getLogger("smoe.loop")


@dataclass(frozen=True)
class Blockage:
    """A time in which the event loop did nothing else."""

    seconds: float  # without those in which its thread was ready to run and had no core
    cpu_seconds: float  # of its thread; much less than `seconds` if it waited for a lock or a disk
    stack: tuple[str, ...]  # "file.py:12 function", outermost first; of the moment that the limit was reached

    def __str__(self) -> str:
        where = " > ".join(self.stack) or "unknown code"
        return f"the event loop was blocked for {self.seconds:.3f} s ({self.cpu_seconds:.3f} s of CPU time): {where}"


def log_blockage(blockage: Blockage) -> None:
    """Write a warning."""
    log.warning("%s", blockage)


class LoopWatch:
    """Watches the running event loop of the main thread."""

    def __init__(self, report: Callable[[Blockage], None] = log_blockage, limit_s: float = LIMIT_S) -> None:
        """`report` is called on the event loop after each blockage."""
        self._report = report
        self._limit_s = limit_s
        self._stopped = threading.Event()
        self._stack: tuple[str, ...] = ()

    def start(self) -> None:
        """Watch from now on. Called on the loop, in the main thread."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._cpu_clock = time.pthread_getcpuclockid(self._loop_thread)
        self._schedstat = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._previous = signal.signal(signal.SIGUSR2, self._take_stack)
        self._thread = threading.Thread(target=self._watch, name="loop-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch. Called on the loop."""
        self._stopped.set()
        self._thread.join()
        signal.signal(signal.SIGUSR2, self._previous)

    def _watch(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._watch_until_stopped()

    def _watch_until_stopped(self) -> None:
        while not self._stopped.wait(INTERVAL_S):
            alive = threading.Event()
            asked_s, cpu_s = self._clocks()
            self._loop.call_soon_threadsafe(alive.set)
            if not alive.wait(self._limit_s) and self._examine(alive):
                now_s, now_cpu_s = self._clocks()
                blockage = Blockage(now_s - asked_s, now_cpu_s - cpu_s, self._stack)
                if blockage.seconds >= self._limit_s:
                    self._loop.call_soon_threadsafe(self._report, blockage)

    def _clocks(self) -> tuple[float, float]:
        """Return the seconds in which the loop's thread could run, and those in which it did; only differences count.

        The kernel counts how long a thread waits for a core (proc(5), schedstat): that is another program's doing.
        """
        try:
            waited_s = int(self._schedstat.read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            waited_s = 0.0
        return time.monotonic() - waited_s, time.clock_gettime(self._cpu_clock)

    def _examine(self, alive: threading.Event) -> bool:
        """Take the stack and wait for the end of the blockage; False if the watch ends before."""
        self._stack = ()
        signal.pthread_kill(self._loop_thread, signal.SIGUSR2)
        while not alive.wait(INTERVAL_S):
            if self._stopped.is_set():
                return False
        return True

    def _take_stack(self, signum: int, frame: FrameType | None) -> None:
        """Runs in the loop's thread, between two of its instructions."""
        frames = traceback.extract_stack(frame, MAX_FRAMES) if frame is not None else []
        self._stack = tuple(f"{'/'.join(Path(f.filename).parts[-3:])}:{f.lineno} {f.name}" for f in frames)
