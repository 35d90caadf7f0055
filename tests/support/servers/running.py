"""Starts `smoe serve` as a user does or forks it, on a free port, and stops it by its process id."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.conditions import wait_until
from tests.support.forked.commands import popen as forked_popen
from tests.support.ports import free_port
from tests.support.servers.child_processes import engine_pid_of

STOP_TIMEOUT_S = 60.0
PAUSE_S = 0.02  # between two looks: the servers need the core more
METRICS_AGE_S = 1.1
MODEL = "smoe-demo"
KEY = "secret"  # of the fixture `locked`
BLOCKAGES: list[str] = []  # log lines of all servers: what blocked their event loops for more than 50 ms

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    """Return the values of a scrape by name and labels (without model_name)."""
    return {
        (s.name, tuple(sorted((k, v) for k, v in s.labels.items() if k != "model_name"))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


@dataclass
class RunningServer:
    """A server that was ready when this was made."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    has_sigterm: bool = False

    def sigterm(self) -> None:
        """Ask for a drain, at most once: a second signal would stop the server immediately."""
        if not self.has_sigterm and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.has_sigterm = True

    def post(self, path: str, body: object, **kwargs: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, **kwargs)  # type: ignore[arg-type]

    def complete(self, prompt: object, **params: object) -> httpx.Response:
        return self.post("/v1/completions", {"model": MODEL, "prompt": prompt, **params})

    @property
    def engine_pid(self) -> int:
        """Process id of the engine."""
        return engine_pid_of(self.process.pid)

    @contextmanager
    def engine_stopped(self) -> Iterator[None]:
        """Stop the engine process within the block. After 9 s the server would report it as stuck."""
        pid = self.engine_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @property
    def load(self) -> int:
        """Number of requests in the server."""
        load: int = httpx.get(self.url + "/load").json()["server_load"]
        return load

    def await_load(self, num_requests: int) -> None:
        """Wait until the server has this number of requests."""
        with httpx.Client(base_url=self.url) as client:
            wait_until(lambda: client.get("/load").json()["server_load"] == num_requests)

    def metrics(self) -> Samples:
        """Scrape the server; see `samples`."""
        return samples(httpx.get(self.url + "/metrics").text)

    def settled_metrics(self) -> Samples:
        """Wait until the server is idle and return its metrics; check that all blocks are free and all requests ended.

        The server renders metrics at most once per second: they are read when that is newer than the last request.
        """
        self.await_load(0)
        idle_s = time.monotonic()
        wait_until(lambda: time.monotonic() > idle_s + METRICS_AGE_S, PAUSE_S)
        values = self.metrics()
        assert values["smoe_kv_cache_usage_ratio", ()] == 0, "blocks are still in use"
        ended = sum(value for (name, _), value in values.items() if name == "smoe_requests_total")
        assert values["smoe_requests_received_total", ()] == ended
        return values


@contextmanager
def start_server(
    *flags: str,
    model: str | None = None,
    preexec_fn: Callable[[], None] | None = None,
    popen: Callable[..., "subprocess.Popen[Any]"] = subprocess.Popen,
) -> Iterator[RunningServer]:
    """Start a server and wait until it is ready; at the end of the block stop it by SIGTERM and expect exit code 0."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "server", "serve", *([model] if model else []), "--port", str(port), *flags]
        command.append("--watch-event-loop")
        scheme = "https" if "--ssl-certfile" in flags else "http"
        with log.open("wb") as output:
            process = popen(command, stdout=output, stderr=subprocess.STDOUT, preexec_fn=preexec_fn)
        running = RunningServer(process, f"{scheme}://127.0.0.1:{port}", log)
        try:
            wait_until_ready(running)
            yield running
            running.sigterm()
            assert process.wait(STOP_TIMEOUT_S) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
            BLOCKAGES.extend(line for line in log.read_text().splitlines() if "the event loop was blocked" in line)


forked_server = partial(start_server, popen=forked_popen)  # for tests that say nothing about the start itself


def wait_until_ready(running: RunningServer) -> None:
    """Wait until /health/ready is 200. Fails if the process ends first."""
    with httpx.Client(base_url=running.url, timeout=5, verify=False) as client:

        def is_ready() -> bool:
            assert running.process.poll() is None, running.log.read_text()
            with contextlib.suppress(httpx.TransportError):  # the port is not bound yet
                return client.get("/health/ready").status_code == 200
            return False

        try:
            wait_until(is_ready, PAUSE_S)
        except TimeoutError:
            raise AssertionError(f"not ready: {running.log.read_text()}") from None
