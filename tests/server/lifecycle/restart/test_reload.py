"""server/lifecycle/restart/reload.py: one new process at a time, however fast the signals come."""

import asyncio
import socket
from unittest.mock import Mock

import pytest

from server.lifecycle.restart import reload
from server.lifecycle.restart.keeper import Servers
from server.lifecycle.restart.predecessor import LISTENER_NAME, Inheritance
from server.lifecycle.restart.reload import Reload
from server.lifecycle.startup_report import StartupReport
from tests.support.conditions import until

pytestmark = pytest.mark.anyio


class FakeSuccessor:
    """A new process that becomes ready, or fails, when the test says so."""

    def __init__(self, made: "list[FakeSuccessor]") -> None:
        self.pid = 1
        self.outcome = asyncio.get_running_loop().create_future()
        made.append(self)

    async def wait_ready(self, timeout_s: float) -> bool:
        return bool(await self.outcome)


async def test_a_second_signal_before_the_event_loop_turns_starts_no_second_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[FakeSuccessor] = []
    handed_over = asyncio.Event()
    report = Mock(spec=StartupReport)

    async def hand_over() -> None:
        handed_over.set()

    monkeypatch.setattr(reload, "Successor", lambda *_: FakeSuccessor(made))
    monkeypatch.setattr(reload, "become_subreaper", lambda: None)
    monkeypatch.setattr(reload, "Servers", lambda: Mock(spec=Servers, pids=list))
    monkeypatch.setattr(reload.ControllingTerminal, "is_gone", lambda _: False)
    with socket.socket() as listener:
        changes = Reload(
            listener,
            report,
            Mock(spec=Inheritance, first_process_fd=None, listener_name=LISTENER_NAME),
            timeout_s=60,
            hand_over=hand_over,
            on_hangup=lambda _: None,
            on_lost=lambda: None,
        )
        changes.on_signal()
        changes.on_signal()
        assert len(made) == 1
        assert "loading already" in report.line.call_args.args[0]
        made[0].outcome.set_result(False)
        await until(lambda: "did not become ready" in report.line.call_args.args[0])
        changes.on_signal()
        made[1].outcome.set_result(True)
        await handed_over.wait()
    assert changes.is_handed_over and len(made) == 2
