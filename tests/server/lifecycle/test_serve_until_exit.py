"""server/lifecycle/serve.py as a process with a fake engine: draining, signals, crashes of engine and server."""

import contextlib
import json
import os
import select
import signal
import socket
from pathlib import Path

import httpx

from tests.support.conditions import LIMIT_S, wait_until
from tests.support.servers.server_process import LONG, events, forked, running


def test_sigterm_rejects_new_work_lets_streams_end_and_exits_0(checkpoint: Path) -> None:
    with forked("hold", checkpoint, shutdown_timeout="30") as server:
        server.wait_ready()
        with server.stream() as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith("data: ")
            server.process.terminate()
            while (ready := httpx.get(f"{server.url}/health/ready")).status_code == 200:
                continue
            assert ready.json()["phase"] == "draining"
            assert httpx.get(f"{server.url}/health/live").status_code == 200
            rejected = httpx.post(f"{server.url}/v1/completions", json=LONG)
            assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "draining")
            assert "retry-after" in rejected.headers
            assert server.process.poll() is None
        # the last stream is gone, so the server ends long before the timeout
        assert server.exit_code() == 0


def test_a_stream_longer_than_the_timeout_gets_an_error_event(checkpoint: Path) -> None:
    with forked("hold", checkpoint, shutdown_timeout="0.2") as server:
        server.wait_ready()
        with server.stream() as reply:
            lines = reply.iter_lines()
            next(lines)
            server.process.terminate()
            last = events(lines)
        assert json.loads(last[-2])["error"]["code"] == "draining"
        assert last[-1] == "[DONE]"
        assert server.exit_code() == 0


def test_a_second_signal_ends_streams_at_once_with_an_error_event(checkpoint: Path) -> None:
    with forked("hold", checkpoint, shutdown_timeout="1000") as server:
        server.wait_ready()
        with server.stream() as reply:
            lines = reply.iter_lines()
            next(lines)
            server.process.terminate()
            wait_until(lambda: httpx.get(f"{server.url}/health/ready").status_code != 200)
            server.process.send_signal(signal.SIGINT)
            last = events(lines)
        assert json.loads(last[-2])["error"]["message"] == "The server was stopped before this request was complete."
        assert last[-1] == "[DONE]"
        assert server.exit_code() == 128 + signal.SIGINT


def test_a_killed_engine_ends_its_streams_with_an_error_event_and_is_replaced(checkpoint: Path) -> None:
    with forked("hold", checkpoint) as server:
        server.wait_ready()
        for num_restarts in (1, 2):
            with server.stream() as reply:
                lines = reply.iter_lines()
                next(lines)
                os.kill(server.engine_pid, signal.SIGKILL)
                last = events(lines)
            assert json.loads(last[-2])["error"]["code"] == "engine_dead"
            assert last[-1] == "[DONE]"
            server.wait_health(200)
            line = f'smoe_engine_restarts_total{{model_name="m"}} {num_restarts}.0'
            wait_until(lambda line=line: line in httpx.get(f"{server.url}/metrics").text)  # may be a second old
        server.process.terminate()
        assert server.exit_code() == 0


def test_an_engine_that_cannot_be_restarted_ends_the_server(checkpoint: Path, tmp_path: Path) -> None:
    """Health reports the phases until then: not ready, but live while a restart can help."""
    with forked(f"then-crash:{tmp_path / 'lived'}", checkpoint, without_delays="yes") as server:
        server.wait_ready()
        os.kill(server.engine_pid, signal.SIGKILL)
        phases = set()
        with contextlib.suppress(httpx.TransportError):  # until the process has ended
            while True:
                ready = httpx.get(f"{server.url}/health")
                phases.add((ready.status_code, ready.json()["phase"]))
        assert phases <= {(200, "ready"), (503, "restarting"), (503, "dead")}
        assert server.exit_code() == 1
        assert "smoe: 6 engine processes in a row failed" in server.read_until("^smoe: ")


def test_during_a_restart_new_requests_get_a_503_with_retry_after(checkpoint: Path, tmp_path: Path) -> None:
    with forked(f"then-mute:{tmp_path / 'lived'}", checkpoint) as server:
        server.wait_ready()
        os.kill(server.engine_pid, signal.SIGKILL)
        server.wait_health(503)
        rejected = httpx.post(f"{server.url}/v1/completions", json=LONG)
        assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "engine_dead")
        assert 0 < int(rejected.headers["retry-after"]) <= 120
        ready, live = httpx.get(f"{server.url}/health/ready"), httpx.get(f"{server.url}/health/live")
        assert (ready.status_code, ready.json()["phase"], live.status_code) == (503, "restarting", 200)
        assert 'smoe_engine_up{model_name="m"} 0.0' in httpx.get(f"{server.url}/metrics").text
        server.process.terminate()
        assert server.exit_code() == 0


def test_a_killed_server_frees_its_port_at_once(checkpoint: Path, free_port: int) -> None:
    """Kill it while it loads and while it streams: another server can then start on the same port."""
    for mode in ("mute", "hold"):
        with running(mode, checkpoint, port=str(free_port)) as server:
            if mode == "mute":
                server.read_until("loads")
            else:
                server.wait_ready()
                with server.stream() as reply:
                    next(reply.iter_lines())
                    server.process.kill()
                    server.process.wait(30)
    with forked("count", checkpoint, port=str(free_port)) as server:
        server.wait_ready()


def test_an_unread_log_blocks_nothing(checkpoint: Path) -> None:
    """The pipe is full from the start and stays full, and the server still serves, restarts, drains and ends."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(1 << 16))
    os.set_blocking(writer, True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with forked("hold", checkpoint, stderr=writer, port=str(port)) as server:
        server.url = f"http://127.0.0.1:{port}"
        server.wait_health(200)
        with server.stream() as reply:
            lines = reply.iter_lines()
            next(lines)
            os.kill(server.engine_pid, signal.SIGKILL)
            assert events(lines)[-1] == "[DONE]"
        server.wait_health(200)
        server.process.terminate()
        assert server.exit_code() == 0
    os.close(reader)
    os.close(writer)


def test_closed_standard_streams_are_not_mistaken_for_sockets(checkpoint: Path, free_port: int) -> None:
    """Without descriptors 0 to 2, log lines could go to the first client's socket."""
    with forked("hold", checkpoint, closed_streams="yes", port=str(free_port)) as server:
        server.url = f"http://127.0.0.1:{free_port}"
        server.wait_health(200)
        with server.stream() as reply:
            lines = reply.iter_lines()
            next(lines)
            os.kill(server.engine_pid, signal.SIGKILL)  # which is logged
            last = events(lines)
        assert last[-1] == "[DONE]" and "error" in json.loads(last[-2])
        server.process.terminate()
        assert server.exit_code() == 0


def test_the_engine_ends_when_its_server_is_killed(checkpoint: Path) -> None:
    with running("hold", checkpoint) as server:
        server.wait_ready()
        pidfd = os.pidfd_open(server.engine_pid)
        server.process.kill()
        server.process.wait(30)
        gone, _, _ = select.select([pidfd], [], [], LIMIT_S)
        os.close(pidfd)
        assert gone
