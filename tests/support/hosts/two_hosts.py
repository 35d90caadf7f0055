"""`smoe serve` on two hosts: host 0 answers requests, host 1 computes for it. Both may be this machine."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.support.forked.commands import popen as forked_popen
from tests.support.ports import free_port
from tests.support.servers.running import STOP_TIMEOUT_S, RunningServer, start_server


@dataclass
class Host:
    """`smoe serve` with a --node-rank above 0."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def rank_pid(self) -> int:
        """Process id of its rank."""
        [rank] = [child for child in psutil.Process(self.process.pid).children(recursive=True) if _is_rank(child)]
        return rank.pid


def _is_rank(process: psutil.Process) -> bool:
    """Return whether the command line names the rank; where the process was forked, its own name does."""
    try:
        return "engine.host_rank" in process.cmdline() or "engine.host_rank".startswith(process.name())
    except psutil.NoSuchProcess:
        return False


@contextmanager
def start_host(
    *flags: str,
    address: str = "127.0.0.1",
    prefix: Sequence[str] = (),
    popen: Callable[..., "subprocess.Popen[Any]"] = subprocess.Popen,
) -> Iterator[Host]:
    """Start a host and return at once; at the end of the block stop it by SIGTERM and expect exit code 0.

    `prefix`: words before the command, such as those that enter a network namespace.
    """
    port = free_port()
    command = [*prefix, sys.executable, "-m", "server", "serve", *flags, "--host", address, "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield Host(process, f"http://{address}:{port}", log)
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_TIMEOUT_S) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


@contextmanager
def two_hosts(
    *flags: str, model: str | None = None, popen: Callable[..., "subprocess.Popen[Any]"] = subprocess.Popen
) -> Iterator[tuple[RunningServer, Host]]:
    """Start both hosts on this machine and wait until they are ready."""
    group = ("--tensor-parallel-size", "2", "--nnodes", "2", "--master-addr", "127.0.0.1")
    group = (*group, "--master-port", str(free_port()), *flags)
    words = [model] if model else []
    with (
        start_host(*words, *group, "--node-rank", "1", popen=popen) as host,
        start_server(*group, model=model, popen=popen) as server,
    ):
        yield server, host


forked_two_hosts = partial(two_hosts, popen=forked_popen)  # for tests that say nothing about the start itself
