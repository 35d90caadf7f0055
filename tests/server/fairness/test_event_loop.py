"""server/fairness/event_loop.py: heavy work runs beside the event loop, and the loop's delay is measured."""

import asyncio
import threading

import pytest

from server.fairness.event_loop import BackgroundTasks, LagProbe, off_loop, uninterrupted


@pytest.mark.parametrize("heavy", [False, True])
def test_only_heavy_work_runs_in_another_thread(heavy: bool) -> None:
    thread_id = asyncio.run(off_loop(threading.get_ident, heavy=heavy))
    assert (thread_id != threading.get_ident()) == heavy


@pytest.mark.parametrize("heavy", [False, True])
def test_an_error_in_the_work_reaches_the_caller(heavy: bool) -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(off_loop(lambda: 1 / 0, heavy=heavy))


@pytest.mark.parametrize("fails", [False, True])
def test_a_caller_that_is_cancelled_waits_for_the_end_of_uninterrupted_work(fails: bool) -> None:
    async def scenario() -> None:
        may_end = asyncio.Event()

        async def work() -> None:
            await may_end.wait()
            assert not fails

        caller = asyncio.create_task(uninterrupted(work()))
        for _ in range(3):
            await asyncio.sleep(0)
            caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await caller

    asyncio.run(scenario())


def test_the_error_of_a_background_task_is_reported_and_the_others_are_cancelled() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async def scenario() -> list[str]:
        events: list[str] = []

        async def wait() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                events.append("cancelled")

        reported = asyncio.Event()

        def on_error(error: BaseException) -> None:
            events.append(type(error).__name__)
            reported.set()

        tasks = BackgroundTasks(on_error)
        tasks.spawn(wait())
        tasks.spawn(fail())
        await reported.wait()
        await tasks.cancel()
        await tasks.cancel()
        return events

    assert asyncio.run(scenario()) == ["ZeroDivisionError", "cancelled"]


def test_the_lag_reported_is_the_worst_of_the_last_ten_seconds() -> None:
    now, reports = [0.0], []
    probe = LagProbe(reports.append, clock=lambda: now[0])
    for lag in (0.1, 0.7, *[0.0] * 40):
        now[0] += 0.25 + lag
        probe.measure(now[0] - lag)
    assert reports[:3] == pytest.approx([0.1, 0.7, 0.7])
    assert reports[40] == pytest.approx(0.7)
    assert reports[41] == pytest.approx(0.0)
