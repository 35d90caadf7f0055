"""server/observability/loop_watch.py: what blocks the event loop is named. A callback blocks until it was caught."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from server.observability.loop_watch import Blockage, LoopWatch


class Caught(LoopWatch):
    """A watch that lets the blocking callback end when its stack was taken."""

    def __init__(self) -> None:
        self.reports: list[Blockage] = []
        self.is_reported = asyncio.Event()
        self.has_stack = threading.Event()
        super().__init__(self._on_report, limit_s=0.001)

    def _on_report(self, blockage: Blockage) -> None:
        self.reports.append(blockage)
        self.is_reported.set()

    def _clocks(self) -> tuple[float, float]:
        return time.monotonic(), super()._clocks()[1]  # without a core is as good as blocked, here

    def _take_stack(self, signum: int, frame: object) -> None:
        super()._take_stack(signum, frame)  # type: ignore[arg-type]
        self.has_stack.set()


def blocks_in_python(watch: Caught) -> None:
    while not watch.has_stack.is_set():
        pass


def blocks_in_c(watch: Caught) -> None:
    watch.has_stack.wait(60)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("culprit", [blocks_in_python, blocks_in_c])
def test_a_callback_that_blocks_the_loop_is_named(
    culprit: Callable[[Caught], None], new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def scenario() -> list[Blockage]:
        watch = Caught()
        watch.start()
        while not any(culprit.__name__ in " ".join(report.stack) for report in watch.reports):
            watch.has_stack.clear()
            watch.is_reported.clear()
            asyncio.get_running_loop().call_soon(culprit, watch)
            await watch.is_reported.wait()
        watch.stop()
        return watch.reports

    before = signal.getsignal(signal.SIGUSR2)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        reports = runner.run(asyncio.wait_for(scenario(), 60))
    assert all(report.seconds >= 0.001 and report.cpu_seconds >= 0 for report in reports)
    assert f"test_loop_watch.py:{culprit.__code__.co_firstlineno + 1} {culprit.__name__}" in str(reports[-1])
    assert signal.getsignal(signal.SIGUSR2) is before


def test_an_idle_loop_is_not_blocked() -> None:
    async def scenario() -> list[Blockage]:
        watch = LoopWatch(reports.append, limit_s=60.0)
        beats = 0

        def count(*args: object) -> None:
            nonlocal beats
            beats += 1
            if beats == 3:
                enough.set()

        enough = asyncio.Event()
        watch.start()
        watch._loop = Spied(asyncio.get_running_loop(), count)  # type: ignore[assignment]
        await enough.wait()
        watch.stop()
        return reports

    reports: list[Blockage] = []
    assert asyncio.run(asyncio.wait_for(scenario(), 60)) == []


class Spied:
    """An event loop that also calls `also` for each sign of life."""

    def __init__(self, loop: asyncio.AbstractEventLoop, also: Callable[..., None]) -> None:
        self._loop = loop
        self._also = also

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> None:
        self._loop.call_soon_threadsafe(callback, *args)
        self._loop.call_soon_threadsafe(self._also)


def test_time_without_a_core_does_not_count(tmp_path: Path) -> None:
    """A busy machine is no fault of the callback that happens to run."""

    async def scenario() -> tuple[float, float]:
        watch = LoopWatch(limit_s=60.0)
        watch.start()
        watch.stop()
        watch._schedstat = tmp_path / "schedstat"
        before, _ = watch._clocks()  # no such file: nothing is known
        watch._schedstat.write_text("1 5000000000000 7\n")
        return before, watch._clocks()[0]

    before, after = asyncio.run(scenario())
    assert after < before - 4000  # 5,000 s of waiting are taken off


def test_a_loop_that_is_closed_without_a_stop_ends_the_watch() -> None:
    async def scenario() -> LoopWatch:
        watch = LoopWatch(limit_s=60.0)
        watch.start()
        return watch

    before = signal.getsignal(signal.SIGUSR2)
    watch = asyncio.run(scenario())
    watch._thread.join(60)
    assert not watch._thread.is_alive()
    signal.signal(signal.SIGUSR2, before)
