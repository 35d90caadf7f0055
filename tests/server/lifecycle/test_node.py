"""server/lifecycle/node.py: signals to a host that has ranks and no requests."""

import asyncio
import os
import signal
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import pytest

from server.lifecycle.node import Node
from server.lifecycle.startup_report import SIGHUP_IGNORED, StartupReport
from server.settings.settings import Settings


@pytest.mark.parametrize(("before", "is_reported"), [(signal.SIG_IGN, False), (signal.SIG_DFL, True)])
def test_under_nohup_sighup_stays_ignored_so_that_the_ranks_inherit_that(before: object, is_reported: bool) -> None:
    """A program that is started gets the default action of a signal that has a handler, and ignores one that is."""
    report = Mock(spec=StartupReport)
    node = Node(
        Settings(nnodes=2, node_rank=1, master_addr="127.0.0.1", tensor_parallel_size=2), Path("model"), 0, report
    )
    during: list[object] = []

    async def started(*_: object) -> None:
        during.append(signal.getsignal(signal.SIGHUP))
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)

    node._supervisor = Mock(start=started, stop=AsyncMock())
    previous = signal.signal(signal.SIGHUP, before)  # type: ignore[arg-type]
    try:
        assert asyncio.run(node.run(None)) == 0
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert (during[0] is signal.SIG_IGN) is not is_reported
    assert (SIGHUP_IGNORED in [call.args[0] for call in report.line.call_args_list]) is is_reported
