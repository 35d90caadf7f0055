"""Starts `smoe serve` as a user does, on a free port, and stops it by its own process id."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

START_TIMEOUT_S, STOP_TIMEOUT_S = 120.0, 60.0
METRICS_AGE_S = 1.1
MODEL = "smoe-demo"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def samples(text: str) -> Samples:
    """The values of a scrape by name and labels (without model_name)."""
    return {
        (s.name, tuple(sorted((k, v) for k, v in s.labels.items() if k != "model_name"))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


@dataclass
class RunningServer:
    """A server that is ready."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    is_told_to_stop: bool = False

    def sigterm(self) -> None:
        """Asks for a drain; once, for a second signal means at once."""
        if not self.is_told_to_stop and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.is_told_to_stop = True

    def post(self, path: str, body: object, **kwargs: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, **kwargs)  # type: ignore[arg-type]

    def complete(self, prompt: object, **params: object) -> httpx.Response:
        return self.post("/v1/completions", {"model": MODEL, "prompt": prompt, **params})

    @property
    def engine_pid(self) -> int:
        """The only child that the server has."""
        [pid] = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(pid)

    @contextmanager
    def engine_stopped(self) -> Iterator[None]:
        """Nothing is computed inside, however fast the machine is. After 9 s the server would call it stuck."""
        pid = self.engine_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @property
    def load(self) -> int:
        """How many requests the server holds."""
        load: int = httpx.get(self.url + "/load").json()["server_load"]
        return load

    def await_load(self, num_requests: int) -> None:
        """Returns when the server holds so many requests."""
        deadline = time.monotonic() + 30
        while (load := self.load) != num_requests:
            assert time.monotonic() < deadline, f"it holds {load} requests"

    def metrics(self) -> Samples:
        """See `samples`."""
        return samples(httpx.get(self.url + "/metrics").text)

    def settled_metrics(self) -> Samples:
        """What is counted once nothing runs any more; checks that no block is held and that the ledger adds up.

        The rendered text may be a second old, so it is asked for until it is newer than the last piece of work.
        """
        self.await_load(0)
        idle_s = asked_s = time.monotonic()
        values = self.metrics()
        while asked_s < idle_s + METRICS_AGE_S:
            asked_s = time.monotonic()
            values = self.metrics()
        assert values["smoe_kv_cache_usage_ratio", ()] == 0, "blocks are still held"
        ended = sum(value for (name, _), value in values.items() if name == "smoe_requests_total")
        assert values["smoe_requests_received_total", ()] == ended
        return values


@contextmanager
def start_server(*flags: str, model: str | None = None) -> Iterator[RunningServer]:
    """Ready when entered; stopped by SIGTERM, with exit code 0, when left."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "server", "serve", *([model] if model else []), "--port", str(port), *flags]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        running = RunningServer(process, f"http://127.0.0.1:{port}", log)
        try:
            wait_until_ready(running)
            yield running
            running.sigterm()
            assert process.wait(STOP_TIMEOUT_S) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


def wait_until_ready(running: RunningServer) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert running.process.poll() is None, running.log.read_text()
        try:
            if httpx.get(running.url + "/health/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass  # the port is not bound yet
    raise AssertionError(f"not ready after {START_TIMEOUT_S} s: {running.log.read_text()}")
