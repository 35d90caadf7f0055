"""The sandbox of a running server: it delays no end of the server, and none of its processes outlives it."""

import json
import os
import re
import select
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.support.servers.child_processes import open_sandbox_of, stop_sandbox_of
from tests.support.servers.server_process import Server, forked, running

NUM_HELD = 40
LIMIT_S = 60


def test_checks_that_never_end_do_not_delay_the_exit(checkpoint: Path) -> None:
    """The processes are stopped, so nothing that they were given ends; the server's own limit on the drain does."""
    with forked("hold", checkpoint, shutdown_timeout="1") as server:
        server.wait_ready()
        num_tasks = tasks_of(server)
        handles = stop_sandbox_of(server.process.pid)
        held = [ask_for_grammar(server, f"a{{1,{i + 1}}}") for i in range(NUM_HELD)]
        deadline_s = time.monotonic() + LIMIT_S
        while tasks_of(server) < num_tasks + NUM_HELD:
            assert time.monotonic() < deadline_s
        server.process.terminate()
        assert server.exit_code() == 0
        assert all(is_gone(handle) for handle in handles)
        for connection in held:
            connection.close()


def test_a_killed_server_leaves_no_process_of_its_sandbox(checkpoint: Path) -> None:
    with running("hold", checkpoint) as server:
        server.wait_ready()
        handles = open_sandbox_of(server.process.pid)
        server.process.kill()
        server.process.wait(LIMIT_S)
        assert len(handles) > 1 and all(is_gone(handle) for handle in handles)


def is_gone(pidfd: int) -> bool:
    """Wait until the process has ended; False if it does not."""
    ready, _, _ = select.select([pidfd], [], [], LIMIT_S)
    os.close(pidfd)
    return bool(ready)


def tasks_of(server: Server) -> int:
    metrics = httpx.get(f"{server.url}/metrics").text
    [value] = re.findall(r"^smoe_event_loop_tasks\S* (\S+)$", metrics, re.MULTILINE)
    return int(float(value))


def ask_for_grammar(server: Server, regex: str) -> socket.socket:
    """Send a request whose grammar the server has not seen, and do not wait for the answer."""
    url = urlsplit(server.url)
    body = json.dumps({"model": "m", "prompt": "It was", "structured_outputs": {"regex": regex}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((url.hostname or "", url.port or 0))
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection
