"""A real server process with the bundled model, on the loopback interface."""

from collections.abc import Iterator

import pytest

from tests.support.servers.running import BLOCKAGES, KEY, RunningServer, forked_server


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """One float32 server for all tests that leave it idle and unchanged."""
    with forked_server("--dtype", "float32", "--threads", "1", "--embeddings") as running:
        yield running
        running.settled_metrics()


@pytest.fixture(scope="session")
def locked() -> Iterator[RunningServer]:
    """One server with an API key, for all tests that leave it idle and unchanged."""
    with forked_server("--dtype", "float32", "--threads", "1", "--api-key", KEY) as running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what blocked the servers' event loops. No failure: beside other work a callback may just have no core."""
    for line in BLOCKAGES:
        terminalreporter.write_line(line)
