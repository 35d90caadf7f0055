"""The server as a process, with a fake engine."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.conditions import wait_until
from tests.support.forked.commands import popen as forked_popen
from tests.support.paths import FAKE_ENGINE_SERVER, ROOT
from tests.support.servers.child_processes import engine_pid_of

LONG = {"model": "m", "prompt": "It was", "max_tokens": 50, "stream": True}


class Server:
    """A running server process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self.url = ""

    def read_until(self, pattern: str) -> str:
        """Return the first line that matches, among all lines until the process ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line matches {pattern}: {self.lines}")

    def wait_ready(self) -> None:
        line = self.read_until(r"^curl ")
        self.url = re.findall(r"https?://[^/]+", line)[0]

    def wait_health(self, status: int) -> None:
        """Wait until /health has this status."""

        def has_status() -> bool:
            assert self.process.poll() is None
            with contextlib.suppress(httpx.TransportError):  # the port is not bound yet
                return httpx.get(f"{self.url}/health").status_code == status
            return False

        wait_until(has_status)

    def stream(self) -> "contextlib.AbstractContextManager[httpx.Response]":
        trusts_any = self.url.startswith("https")  # the certificate of tests/support/tls
        return httpx.stream("POST", f"{self.url}/v1/completions", json=LONG, timeout=30, verify=not trusts_any)

    def exit_code(self) -> int:
        return self.process.wait(30)

    @property
    def engine_pid(self) -> int:
        return engine_pid_of(self.process.pid)


@contextlib.contextmanager
def running(
    mode: str,
    checkpoint: Path,
    stderr: int = subprocess.PIPE,
    closed_streams: str = "",
    max_files: int = 0,
    popen: Callable[..., "subprocess.Popen[Any]"] = subprocess.Popen,
    **flags: str,
) -> Iterator[Server]:
    """Start a server. `max_files`: limit of its descriptors, if not 0."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SMOE_")}
    arguments = {"model": str(checkpoint), "port": "0", "served_model_name": "m", **flags}
    command = [
        sys.executable,
        "-P",
        str(FAKE_ENGINE_SERVER),
        mode,
        *(f"{name}={value}" for name, value in arguments.items()),
    ]
    if closed_streams:
        command = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *command]
    if max_files:
        command = ["sh", "-c", f'ulimit -n {max_files} && exec "$@"', "sh", *command]
    process = (subprocess.Popen if command[0] == "sh" else popen)(
        command,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stderr=stderr,
        text=True,
    )
    try:
        yield Server(process)
    finally:
        family = _descendants(process.pid)  # a server that has taken over outlives the first process if that is killed
        process.kill()
        for descendant in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                descendant.kill()
        process.communicate(timeout=30)


forked = partial(running, popen=forked_popen)  # unless a shell starts it


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def events(lines: Iterator[str]) -> list[str]:
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
