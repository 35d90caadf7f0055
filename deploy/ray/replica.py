"""One `smoe serve` of a fleet: started, started again when it ends, drained. It needs no Ray.

Linux with setpriv (util-linux): the server gets SIGTERM when the process that started it ends, however it ends. Without
that `ray stop --force` would leave servers behind.
"""

import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

DRAIN_S = 90.0  # more than --shutdown-timeout
ANSWER_S = 1.0
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting")


@dataclass(frozen=True)
class Status:
    """State of a replica."""

    address: str  # HOST:PORT
    num_requests: int | None  # running and waiting; None if it is not ready


class Replica:
    """A server and its supervision. Methods are called one at a time."""

    def __init__(self, command: Sequence[str], host: str, port: int) -> None:
        """`command`: of the server, without --host and --port. `host`: address of this machine that Envoy reaches."""
        self._address = f"{host}:{port}"
        self._command = ["setpriv", "--pdeathsig", "TERM", "--", *command, "--host", host, "--port", str(port)]
        self._process = subprocess.Popen(self._command)

    def check(self) -> Status:
        """Return the state; start the server again if it has ended."""
        if self._process.poll() is not None:
            self._process = subprocess.Popen(self._command)
        return Status(self._address, self._num_requests())

    def drain(self) -> int:
        """Let requests finish, end the server and return its exit code."""
        self._process.terminate()
        try:
            return self._process.wait(DRAIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _num_requests(self) -> int | None:
        try:
            self._get("/health/ready")
            lines = self._get("/metrics/load").splitlines()
        except (urllib.error.URLError, OSError):
            return None
        return sum(int(line.split()[1]) for line in lines if line.startswith(GAUGES))

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self._address}{path}", timeout=ANSWER_S) as answer:
            text: str = answer.read().decode()
        return text
