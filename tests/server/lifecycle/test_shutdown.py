"""server/lifecycle/shutdown.py: exit codes, and how long running requests are waited for."""

import asyncio
import io
import signal
from typing import Any

import pytest

from server.http.connections import Connections
from server.http.uvicorn_server import RequestTracker
from server.lifecycle.shutdown import Shutdown
from server.lifecycle.startup_report import StartupReport

pytestmark = pytest.mark.anyio


class FakeClient:
    """Records the calls of the shutdown."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def drain(self) -> None:
        self.calls.append("drain")

    async def stop(self) -> None:
        self.calls.append("stop")


class Scene:
    """A shutdown with one running request, and its report."""

    def __init__(self) -> None:
        self.finish = asyncio.Event()
        self.client = FakeClient()
        self.text = io.StringIO()
        in_flight = RequestTracker(self._app)
        self.request = asyncio.create_task(in_flight({}, None, None))  # type: ignore[arg-type]
        report = StartupReport(self.text)
        self.connections = Connections()
        self.shutdown = Shutdown(self.client, in_flight, self.connections, report, drain_timeout_s=60.0)  # type: ignore[arg-type]

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        await self.finish.wait()


async def test_a_signal_waits_for_running_requests_and_exits_0() -> None:
    scene = Scene()
    await asyncio.sleep(0)  # the request is running
    ended = asyncio.create_task(scene.shutdown.run())
    scene.shutdown.on_signal(signal.SIGTERM)
    await asyncio.wait({ended}, timeout=0.01)
    assert scene.client.calls == ["drain"]
    scene.finish.set()
    assert await ended == 0
    assert scene.client.calls == ["drain", "stop"]


async def test_a_signal_ends_work_of_the_start_that_has_no_end() -> None:
    """A tokenizer or a template that takes its time in the sandbox."""
    scene = Scene()
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def endless() -> int:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return 1

    work = asyncio.create_task(scene.shutdown.unless_requested(endless()))
    await started.wait()
    scene.shutdown.on_signal(signal.SIGTERM)
    assert await work is None and cancelled.is_set()


async def test_work_of_the_start_gives_its_result_or_its_error() -> None:
    async def answer(value: int) -> int:
        return 10 // value

    shutdown = Scene().shutdown
    assert await shutdown.unless_requested(answer(5)) == 2
    with pytest.raises(ZeroDivisionError):
        await shutdown.unless_requested(answer(0))


@pytest.mark.parametrize(("first", "again"), [(signal.SIGTERM, "a second signal"), (signal.SIGINT, "Ctrl-C again")])
async def test_a_second_signal_ends_the_drain_and_is_the_exit_code(first: signal.Signals, again: str) -> None:
    scene = Scene()
    await asyncio.sleep(0)
    for signum in (first, signal.SIGINT):
        scene.shutdown.on_signal(signum)
    line = f"stopping: 1 request still runs (for up to 60 s); {again} ends now\n"
    assert scene.text.getvalue() == line, "the first signal says what is waited for"
    assert await scene.shutdown.run() == 128 + signal.SIGINT
    assert scene.client.calls[-1] == "stop"
    scene.request.cancel()


async def test_only_the_first_failure_is_reported_and_nothing_is_waited_for() -> None:
    scene = Scene()
    scene.shutdown.fail("no weights", 2)
    scene.shutdown.fail("the engine is gone", 1)
    assert await scene.shutdown.run() == 2
    assert scene.text.getvalue() == "smoe: no weights\n"
    assert scene.client.calls == ["stop"]
    scene.request.cancel()


async def test_after_a_signal_the_engines_end_is_no_failure() -> None:
    scene = Scene()
    scene.finish.set()
    scene.shutdown.on_signal(signal.SIGTERM)
    scene.shutdown.fail("the server is shutting down", 1)
    assert await scene.shutdown.run() == 0
    assert scene.text.getvalue() == ""
