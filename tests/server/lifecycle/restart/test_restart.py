"""server/lifecycle/restart/ with real processes and a fake engine: SIGHUP replaces the server and drops nothing."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import httpx
import pytest

from server.http.listener import listen
from tests.server.lifecycle.restart.generations import (
    TAKEN_OVER,
    child_commands,
    engine_of,
    hang_up,
    has_ended,
    loading,
    of_systemd,
    open_streams,
    servers_below,
)
from tests.support.conditions import until, wait_until
from tests.support.servers.server_process import LONG, Server, events, forked, running
from tests.support.servers.serving import TLS_FILES

NUM_STREAMS = 30


@pytest.mark.parametrize("flags", [{}, TLS_FILES], ids=["plain", "TLS"])
def test_running_streams_are_complete_and_new_requests_reach_the_new_process(
    checkpoint: Path, flags: dict[str, str]
) -> None:
    with forked("gate", checkpoint, **flags) as server:
        server.wait_ready()
        first_engine = server.engine_pid
        with open_streams(server, NUM_STREAMS) as streams:
            new = hang_up(server)
            assert [new] == servers_below(server.process.pid)
            with open_streams(server, 1) as others:
                os.kill(engine_of(new), signal.SIGUSR1)
                assert events(others[0])[-1] == "[DONE]"
            os.kill(first_engine, signal.SIGUSR1)
            for stream in streams:
                received = events(stream)
                assert '"length"' in received[-2] and received[-1] == "[DONE]"
        server.process.terminate()
        assert server.exit_code() == 0


async def hammer(url: str, stop: asyncio.Event) -> int:
    """Send requests on kept and on new connections until `stop`; return their number. Each must succeed."""
    count = 0
    async with httpx.AsyncClient(base_url=url, timeout=60) as kept:
        while not stop.is_set():
            async with httpx.AsyncClient(base_url=url, timeout=60) as fresh:
                for client in (kept, fresh):
                    reply = await client.post("/v1/completions", json={**LONG, "stream": False})
                    assert reply.status_code == 200, reply.text
                    count += 1
    return count


def test_no_request_fails_during_restarts_and_the_process_id_stays(checkpoint: Path) -> None:
    async def restart_under_load(server: Server) -> list[int]:
        stop = asyncio.Event()
        loads = [asyncio.create_task(hammer(server.url, stop)) for _ in range(2)]
        generations = [await asyncio.to_thread(hang_up, server) for _ in range(2)]
        await until(lambda: set(child_commands(server.process.pid)) == {generations[-1]})  # the others have ended
        assert not any(load.done() for load in loads)
        stop.set()
        assert all(await asyncio.gather(*loads))
        return generations

    with running("count", checkpoint) as server:
        server.wait_ready()
        generations = asyncio.run(restart_under_load(server))
        assert len(set(generations)) == 2
        server.process.terminate()
        assert server.exit_code() == 0
        assert not Path(f"/proc/{generations[-1]}").exists()


def test_a_new_process_that_cannot_start_leaves_the_old_one_serving(checkpoint: Path, tmp_path: Path) -> None:
    with forked(f"then-crash:{tmp_path / 'lived'}", checkpoint) as server:
        server.wait_ready()
        server.process.send_signal(signal.SIGHUP)
        server.read_until("SIGHUP: the new process did not become ready; this one goes on")
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert not servers_below(server.process.pid)
        server.process.terminate()
        assert server.exit_code() == 0


@pytest.mark.parametrize("num_restarts", [1, 2])
def test_without_the_first_process_the_server_finishes_its_streams_and_frees_the_port(
    checkpoint: Path, num_restarts: int
) -> None:
    """SIGKILL of the process that others know: nobody else could stop the one that has taken over."""
    with running("gate", checkpoint) as server:
        server.wait_ready()
        for _ in range(num_restarts):
            new = hang_up(server)
            wait_until(lambda new=new: set(child_commands(server.process.pid)) == {new})  # type: ignore[misc]
        with open_streams(server, 3) as streams:
            server.process.kill()
            server.read_until("stopping: the first process of this server was killed")
            listen("127.0.0.1", int(server.url.rsplit(":", 1)[1])).close()
            os.kill(engine_of(new), signal.SIGUSR1)
            for stream in streams:
                assert events(stream)[-1] == "[DONE]"
        assert server.process.stderr is not None
        server.process.stderr.read()  # until the last process has ended


@pytest.mark.parametrize("num_restarts", [1, 2])
def test_without_the_process_that_has_taken_over_the_server_frees_the_port_and_ends(
    checkpoint: Path, num_restarts: int
) -> None:
    """The process before it still has a stream, and the port would accept connections that nobody answers."""
    with running("gate", checkpoint) as server:
        server.wait_ready()
        draining = server.process.pid
        if num_restarts > 1:
            draining = hang_up(server)
            wait_until(lambda: set(child_commands(server.process.pid)) == {draining})
        engine = engine_of(draining)
        with open_streams(server, 1) as streams:
            os.kill(hang_up(server), signal.SIGKILL)
            server.read_until("stopping: the process that has taken over has ended")
            listen("127.0.0.1", int(server.url.rsplit(":", 1)[1])).close()
            os.kill(engine, signal.SIGUSR1)
            assert events(streams[0])[-1] == "[DONE]"
        assert server.exit_code() in (128 + signal.SIGKILL, 1)


def test_sighup_before_the_event_loop_restarts_as_later(checkpoint: Path) -> None:
    with running("count", checkpoint, early_hangup="yes") as server:
        server.read_until(TAKEN_OVER)
        server.process.terminate()
        assert server.exit_code() == 0


def test_under_nohup_sighup_is_ignored(checkpoint: Path) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running("count", checkpoint) as server:
            server.wait_ready()
            server.process.send_signal(signal.SIGHUP)
            server.process.terminate()
            assert server.exit_code() == 0
            assert server.process.stderr is not None
            assert "SIGHUP" not in server.process.stderr.read()
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_process_that_loads_ends_when_the_one_in_charge_is_killed(checkpoint: Path) -> None:
    """Otherwise the port accepts connections that nobody answers until it has loaded."""
    with running("gate", checkpoint) as server:
        server.wait_ready()
        with open_streams(server, 1) as streams:
            in_charge = hang_up(server)
            new = loading(server, in_charge)
            wait_until(lambda: "fake_engine_process" in str(child_commands(new)))
            os.kill(engine_of(new), signal.SIGSTOP)  # it never becomes ready
            os.kill(in_charge, signal.SIGKILL)
            server.read_until("stopping: the process that has taken over has ended")
            assert has_ended(new)
            listen("127.0.0.1", int(server.url.rsplit(":", 1)[1])).close()
            os.kill(engine_of(server.process.pid), signal.SIGUSR1)
            assert events(streams[0])[-1] == "[DONE]"
        assert server.exit_code() == 1


def test_a_socket_of_systemd_is_served(checkpoint: Path) -> None:
    with listen("127.0.0.1", 0) as listener, of_systemd("count", checkpoint, listener) as server:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.wait_ready()
        assert server.url == url
        assert httpx.post(f"{url}/v1/completions", json={**LONG, "stream": False}).status_code == 200
        server.process.terminate()
        assert server.exit_code() == 0


def is_open(listener: socket.socket) -> bool:
    return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


@pytest.mark.parametrize("num_restarts", [1, 2])
def test_a_socket_of_systemd_stays_open_when_the_process_that_has_taken_over_is_lost(
    checkpoint: Path, num_restarts: int
) -> None:
    """systemd starts the service again with it."""
    with listen("127.0.0.1", 0) as listener, of_systemd("gate", checkpoint, listener) as server:
        server.wait_ready()
        draining = server.process.pid
        if num_restarts > 1:
            draining = hang_up(server)
            wait_until(lambda: set(child_commands(server.process.pid)) == {draining})
        engine = engine_of(draining)
        with open_streams(server, 1) as streams:
            os.kill(hang_up(server), signal.SIGKILL)
            server.read_until("stopping: the process that has taken over has ended")
            os.kill(engine, signal.SIGUSR1)
            assert events(streams[0])[-1] == "[DONE]"
        server.exit_code()
        assert is_open(listener)


def test_a_socket_of_systemd_stays_open_when_the_first_process_is_killed(checkpoint: Path) -> None:
    with listen("127.0.0.1", 0) as listener, of_systemd("gate", checkpoint, listener) as server:
        server.wait_ready()
        new = hang_up(server)
        wait_until(lambda: set(child_commands(server.process.pid)) == {new})
        server.process.kill()
        server.read_until("stopping: the first process of this server was killed")
        assert server.process.stderr is not None
        server.process.stderr.read()  # until the last process has ended
        assert is_open(listener)
