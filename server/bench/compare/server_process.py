"""A server under test: started with a command line on a free port, and stopped with all that it started."""

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from server.bench.http_client import Endpoint, HttpError, request

HOST = "127.0.0.1"
PORT = "{port}"
POLL_S = 0.05
ANSWER_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 20.0
MAX_WORDS = 300  # characters of a log's last line in a message


class ServerError(Exception):
    """A command that is no server, or a server that ends or does not become ready. One line."""


@dataclass(frozen=True)
class ServerCommand:
    """A server's name, and its command line, in which {port} stands for the port."""

    name: str
    line: str

    @classmethod
    def parse(cls, text: str) -> "ServerCommand":
        """Parse "NAME=COMMAND". Raises ServerError."""
        name, _, line = text.partition("=")
        command = cls(name.strip(), line)
        if not command.name or PORT not in line:
            raise ServerError(f"--server {text}: should be NAME=COMMAND, with {PORT} where the command takes its port")
        try:
            shlex.split(line)
        except ValueError as error:
            raise ServerError(f"--server {text}: {str(error).lower()}") from None
        return command

    def words(self, port: int) -> list[str]:
        """Return the words of the command line."""
        return [word.replace(PORT, str(port)) for word in shlex.split(self.line)]


@dataclass(frozen=True)
class RunningServer:
    """A server that has answered with 200."""

    endpoint: Endpoint
    pid: int
    ready_s: float  # from the start of the process to the first 200


@asynccontextmanager
async def running(
    command: ServerCommand, log: Path, health_path: str, timeout_s: float
) -> AsyncGenerator[RunningServer, None]:
    """Run a server inside the block; its output goes to `log`. Raises ServerError."""
    port = _free_port()
    words, endpoint, start_s = command.words(port), Endpoint(HOST, port), time.perf_counter()
    try:
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *words, stdin=DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
    except OSError as error:
        raise ServerError(f"{command.name}: {error.filename or words[0]}: {error.strerror}") from None
    try:
        try:
            async with asyncio.timeout(timeout_s):
                await _until_ready(process, endpoint, health_path)
        except TimeoutError:
            message = f"{command.name}: no 200 from {health_path} within {timeout_s:g} s; its log is {log}"
            raise ServerError(message) from None
        if process.returncode is not None:
            raise ServerError(f"{command.name} ended with {process.returncode}: {_last_line(log)} ({log})")
        yield RunningServer(endpoint, process.pid, time.perf_counter() - start_s)
    finally:
        await _stop(process)


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


async def _until_ready(process: Process, endpoint: Endpoint, health_path: str) -> None:
    """Return when the server answers with 200, or when the process has ended."""
    while process.returncode is None and await _status(endpoint, health_path) != 200:  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)


async def _status(endpoint: Endpoint, path: str) -> int:
    """Return the status of an answer; 0 without one."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S), request(endpoint, "GET", path) as response:
            return response.status
    except (OSError, HttpError, TimeoutError):
        return 0


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip()[:MAX_WORDS] if lines else "it wrote nothing"


async def _stop(process: Process) -> None:
    """End the process, then what is left of its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
