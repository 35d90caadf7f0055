"""A server that a command starts for itself on a free loopback port, and that ends with the command."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from server.cli.client.api_client import ApiError
from server.engine_client.launch import package_root
from server.settings.sources import environment_without_address

HOST = "127.0.0.1"
# A command that is killed cannot end its server: the kernel does. Packages come from where this command's come from.
RUN = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from engine.parent_death import die_with_parent; "
    "die_with_parent(int(sys.argv.pop(1))); from server.cli.main import main; main()"
)
POLL_S = 0.1
STOP_TIMEOUT_S = 20.0  # a drain without requests takes less
ANSWER_TIMEOUT_S = 10.0


class OwnServer:
    """One `smoe serve` process, a child of this one. Its log goes to a file."""

    def __init__(self, flags: Sequence[str], log: Path) -> None:
        """Start `smoe serve` with `flags`, the model first. Raises ApiError if the log cannot be written."""
        self.port = _free_port()
        command = [sys.executable, "-P", "-c", RUN, str(package_root()), str(os.getpid()), "serve", *flags]
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._log = _new_log(log)
        except OSError as error:
            hint = "the server's log goes there; XDG_STATE_HOME=FOLDER names another place"
            raise ApiError(f"{log}: {error.strerror}: {hint}") from None
        self._process = subprocess.Popen(
            [*command, "--host", HOST, "--port", str(self.port), "--log-format", "text"],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment_without_address(),
            start_new_session=True,  # Ctrl-C stops an answer, not the server
        )

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://{HOST}:{self.port}"

    def wait_ready(self, show: Callable[[str], None]) -> None:
        """Wait until requests are accepted. `show` gets a few words about the load again and again.

        Raises ApiError with the server's own words if it ends first.
        """
        while self._process.poll() is None:
            health = _health(self.port)
            if health.get("phase") == "ready":
                return
            show(_words(health))
            time.sleep(POLL_S)
        raise ApiError(self._last_words())

    def close(self) -> None:
        """End the server: a drain, then a kill."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(STOP_TIMEOUT_S)
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _last_words(self) -> str:
        """Return the last line of the log, which says why the server ended."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        if not lines:
            return f"the server ended with code {self._process.returncode} before it was ready"
        return lines[-1].removeprefix("smoe: ")


@contextlib.contextmanager
def own_server(flags: Sequence[str], log: Path) -> Iterator[OwnServer]:
    """Run a server inside the block. Raises ApiError."""
    server = OwnServer(flags, log)
    try:
        yield server
    finally:
        server.close()


def serve_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Return the arguments of `smoe serve` that give these settings, which are text, or True for a switch."""
    arguments = [settings["model"]] if "model" in settings else []
    for name, value in settings.items():
        if name != "model":
            flag = f"--{name.replace('_', '-')}"
            arguments += [flag] if value is True else [flag, str(value)]
    return arguments


def _new_log(path: Path) -> BinaryIO:
    """Create a log in place of the older one, whose server keeps its file. Raises OSError."""
    while True:
        path.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):  # another command has created it since
            return path.open("x+b")


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _health(port: int) -> dict[str, Any]:
    """Return the body of /health; empty while the port is not bound."""
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_TIMEOUT_S)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/health")
            body = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return {}
    return body if isinstance(body, dict) else {}


def _words(health: dict[str, Any]) -> str:
    """Return the progress of the load: "weights 40%"."""
    if not health:
        return "starting"
    total = health.get("total_bytes") or 0
    progress = f" {100 * health['loaded_bytes'] // total}%" if total else ""
    return f"{health.get('stage') or 'starting'}{progress}"
