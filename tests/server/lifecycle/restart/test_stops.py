"""Signals that stop a server of several generations: each process hears of them, and none counts one twice."""

import os
import pty
import resource
import signal
import subprocess
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.server.lifecycle.restart.generations import (
    engine_of,
    hang_up,
    has_ended,
    in_terminal,
    open_streams,
    servers_below,
)
from tests.support.conditions import wait_until
from tests.support.servers.server_process import events, forked, running

pytestmark = pytest.mark.slow
IN_SESSION = partial(subprocess.Popen, start_new_session=True)


def test_sigterm_during_the_drain_reaches_both_processes(checkpoint: Path) -> None:
    with forked("gate", checkpoint, shutdown_timeout="0.2") as server:
        server.wait_ready()
        with open_streams(server, 1) as streams:
            new = hang_up(server)
            server.process.terminate()
            assert "error" in events(streams[0])[-2]
        assert server.exit_code() == 0
        assert not Path(f"/proc/{new}").exists()


def test_sigterm_ends_all_generations_while_the_first_one_drains(checkpoint: Path) -> None:
    """The second generation hands over and ends while the first one still has a stream."""
    with running("gate", checkpoint, shutdown_timeout="0.2") as server:
        server.wait_ready()
        with open_streams(server, 1) as streams:
            generations = [hang_up(server) for _ in range(2)]
            wait_until(lambda: servers_below(server.process.pid) == generations[1:])
            server.process.terminate()
            assert "error" in events(streams[0])[-2]
        assert server.exit_code() == 0
        assert not any(Path(f"/proc/{generation}").exists() for generation in generations)


def test_sigint_that_no_terminal_sends_reaches_the_new_process(checkpoint: Path) -> None:
    with running("gate", checkpoint, popen=IN_SESSION, shutdown_timeout="0.2") as server:
        server.wait_ready()
        with open_streams(server, 1):
            new = hang_up(server)
            server.process.send_signal(signal.SIGINT)
            assert server.exit_code() == 0
        assert not Path(f"/proc/{new}").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_a_middle_generation_does_not_pass_on_reaches_the_last_one(
    checkpoint: Path, signum: signal.Signals
) -> None:
    """It comes while that one ends, when no handler runs any more."""
    with running("gate", checkpoint, shutdown_timeout="0.2") as server:
        server.wait_ready()
        with open_streams(server, 1) as streams:
            middle = hang_up(server)
            with open_streams(server, 1):
                last = hang_up(server)
                os.kill(middle, signal.SIGSTOP)
                server.process.send_signal(signum)
                assert "error" in events(streams[0])[-2]
                os.kill(middle, signal.SIGKILL)
        assert server.exit_code() == 0
        assert has_ended(last)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_cuts_no_stream(checkpoint: Path, signum: signal.Signals) -> None:
    """The second generation gets it from the sender and hears of it from the first one."""
    with running("gate", checkpoint, popen=IN_SESSION) as server:
        server.wait_ready()
        with open_streams(server, 1) as first:
            new = hang_up(server)
            engine = engine_of(new)
            with open_streams(server, 1) as second:
                os.killpg(server.process.pid, signum)
                os.kill(engine_of(server.process.pid), signal.SIGUSR1)
                assert events(first[0])[-1] == "[DONE]"
                assert httpx.get(f"{server.url}/health/ready").status_code == 503
                os.kill(engine, signal.SIGUSR1)
                received = events(second[0])
                assert '"length"' in received[-2] and received[-1] == "[DONE]"
        assert server.exit_code() == 0


@pytest.mark.parametrize("is_drained", [False, True], ids=["drains", "keeper"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_all_generations_at_once(
    checkpoint: Path, signum: signal.Signals, is_drained: bool
) -> None:
    with running("gate", checkpoint) as server:
        server.wait_ready()
        with open_streams(server, 1) as first:
            hang_up(server)
            if is_drained:
                os.kill(engine_of(server.process.pid), signal.SIGUSR1)
                assert events(first[0])[-1] == "[DONE]"
                wait_until(lambda: "keeper.py" in Path(f"/proc/{server.process.pid}/cmdline").read_text())
            with open_streams(server, 1) as second:
                server.process.send_signal(signum)
                server.read_until("stopping: 1 request still runs")
                server.process.send_signal(signum)
                assert "error" in events(second[0])[-2]
                assert is_drained or "error" in events(first[0])[-2]
        assert server.exit_code() == 128 + signum


def test_sigint_of_a_program_reaches_the_new_process_in_the_foreground_of_a_terminal(checkpoint: Path) -> None:
    """As with `docker run -t` and `docker kill -s INT`."""
    ours, theirs = pty.openpty()
    with in_terminal("gate", checkpoint, theirs, shutdown_timeout="0.2") as server:
        server.wait_ready()
        with open_streams(server, 1):
            new = hang_up(server)
            server.process.send_signal(signal.SIGINT)
            assert server.exit_code() == 0
        assert has_ended(new)
    os.close(ours)


def test_a_closed_terminal_ends_the_server(checkpoint: Path) -> None:
    """Started by hand in a window that is then closed: nobody could see or stop it."""
    ours, theirs = pty.openpty()
    with in_terminal("count", checkpoint, theirs) as server:
        server.wait_ready()
        os.close(ours)
        assert server.exit_code() == 0


def test_without_free_descriptors_a_stop_reaches_both_processes(checkpoint: Path) -> None:
    with running("gate", checkpoint) as server:
        server.wait_ready()
        with open_streams(server, 1) as streams:
            new = hang_up(server)
            limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (0, limits[1]))
            server.process.terminate()
            wait_until(lambda: has_ended(new))
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
            server.process.terminate()  # the second one only if the first counted
            assert "error" in events(streams[0])[-2]
        assert server.exit_code() == 0
