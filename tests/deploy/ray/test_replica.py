"""deploy/ray/replica.py: a server process that is started again, drained, and ends with the process that started it."""

import importlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from server.observability.load import Load, render_load
from server.settings.settings import Settings
from tests.support.conditions import wait_until
from tests.support.ports import free_port

FOLDER = Path(__file__).parents[3] / "deploy" / "ray"
SERVER = """
import http.server, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = b"vllm:num_requests_waiting 3\\nvllm:num_requests_running 16\\nvllm:kv_cache_usage_perc 0.4\\n"
        self.send_response(200 if self.path in ("/health/ready", "/metrics/load") else 404)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *arguments): pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
http.server.HTTPServer((flags["--host"], int(flags["--port"])), Handler).serve_forever()
"""
COMMAND = [sys.executable, "-c", SERVER]
HOLDER = """
import sys
sys.path.insert(0, sys.argv[1])
from replica import Replica
replica = Replica([sys.executable, "-c", sys.argv[2]], "127.0.0.1", int(sys.argv[3]))
print(replica._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("replica")
    sys.modules.pop("replica", None)


def test_a_replica_is_ready_when_its_server_is_and_is_started_again_when_it_ends(module: ModuleType) -> None:
    port = free_port()
    replica = module.Replica(COMMAND, "127.0.0.1", port)
    try:
        wait_until(lambda: replica.check().num_requests == 19)
        assert replica.check().address == f"127.0.0.1:{port}"
        first = replica._process
        first.kill()
        first.wait()
        wait_until(lambda: replica.check().num_requests == 19)
        assert replica._process.pid != first.pid
        assert replica.drain() == 0
    finally:
        replica._process.kill()


def test_a_server_that_does_not_end_is_killed(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_S", 0.0)
    deaf = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    replica = module.Replica([sys.executable, "-c", deaf], "127.0.0.1", free_port())
    assert replica.check().num_requests is None
    assert replica.drain() in (-signal.SIGKILL, -signal.SIGTERM)


def test_a_server_ends_with_the_process_that_started_it_even_if_that_is_killed() -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(FOLDER), SERVER, str(free_port())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    server = None
    try:
        assert holder.stdout is not None
        server = psutil.Process(int(holder.stdout.readline()))
        wait_until(lambda: server.name() != "setpriv" and bool(server.net_connections()))
        holder.kill()
        wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)
    finally:
        if server is not None:
            with suppress(psutil.NoSuchProcess):
                server.kill()
        holder.kill()
        holder.communicate()


def test_the_recipe_uses_flags_gauges_and_times_that_smoe_has(module: ModuleType) -> None:
    lines = render_load(Load(3, 16, 0.4, 16, 8192)).decode().splitlines()
    assert [line.split()[1] for line in lines if line.startswith(module.GAUGES)] == ["3", "16"]
    assert {"host", "port"} <= set(Settings.model_fields)
    assert Settings.model_fields["shutdown_timeout"].default < module.DRAIN_S
