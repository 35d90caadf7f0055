"""Servers under test: their command lines, their start, and that nothing of them is left."""

import asyncio
import shlex
import sys
from pathlib import Path

import psutil
import pytest

from server.bench.compare.peak_memory import peak_memory
from server.bench.compare.server_process import ServerCommand, ServerError, running
from tests.support.conditions import until

# Answers every GET with 200 and has a child that ignores SIGTERM, as a server with workers may.
SERVER = """
import http.server, signal, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"])
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def command(program: str, *arguments: str) -> ServerCommand:
    return ServerCommand("one", shlex.join([sys.executable, "-c", program, *arguments]))


def test_the_port_is_put_into_the_command() -> None:
    parsed = ServerCommand.parse("other=env A=1 'my server' --port {port} --url http://[::1]:{port}/")
    assert parsed.name == "other"
    assert parsed.words(80) == ["env", "A=1", "my server", "--port", "80", "--url", "http://[::1]:80/"]


@pytest.mark.parametrize("text", ["", "smoe", "=serve {port}", "smoe=smoe serve --port 8000", "a='serve {port}"])
def test_a_command_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ServerError, match=r"--server .*: (should be NAME=COMMAND|no closing quotation)"):
        ServerCommand.parse(text)


def start_and_stop(command: ServerCommand, folder: Path, health_path: str = "/", timeout_s: float = 60.0) -> None:
    """Run a server for a moment. Raises ServerError."""

    async def scenario() -> None:
        async with running(command, folder / "log", health_path, timeout_s):
            pass

    asyncio.run(scenario())


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_server_and_its_children_run_inside_the_block_only(tmp_path: Path) -> None:
    async def scenario() -> list[psutil.Process]:
        async with running(command(SERVER, "{port}"), tmp_path / "log", "/", 60.0) as server:
            processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
            async with peak_memory(server.pid) as memory:
                pass
            assert memory.bytes > 1 << 20 and server.ready_s > 0
            assert len(processes) == 2 and not any(map(has_ended, processes))
        return processes

    processes = asyncio.run(scenario())
    asyncio.run(until(lambda: all(map(has_ended, processes))))


def test_a_server_that_ends_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    ends = command("import sys; sys.stderr.write('no such model\\n'); sys.exit(3)", "{port}")
    with pytest.raises(ServerError, match=r"one ended with 3: no such model \("):
        start_and_stop(ends, tmp_path)


def test_a_server_that_does_not_become_ready_is_stopped(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    waits = command(
        f"import os, signal; open({str(pid_file)!r}, 'w').write(str(os.getpid())); signal.pause()", "{port}"
    )
    with pytest.raises(ServerError, match=r"one: no 200 from /health within 1 s; its log is "):
        start_and_stop(waits, tmp_path, "/health", 1.0)
    assert not pid_file.exists() or not psutil.pid_exists(int(pid_file.read_text()))


def test_a_program_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="one: nowhere: No such file or directory"):
        start_and_stop(ServerCommand("one", "nowhere {port}"), tmp_path)
