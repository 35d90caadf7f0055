"""server/lifecycle/serve.py: what has happened when the engine is launched."""

import errno
import socket
import subprocess
import sys

import pytest

from server.lifecycle.errors import process_error
from tests.support.paths import ROOT

REFUSED_LAUNCH = """
import sys
from server.cli.main import main
from server.lifecycle import serve

async def refuse(command):
    print("launched", "fastapi" in sys.modules)
    raise BlockingIOError(11, "no more processes")

serve.launch_engine = refuse
main()
"""

# An engine that does not end with its socket or its parent, and holds this process' output open while it lives.
STUBBORN_ENGINE = """
import sys
from server.cli.main import main
from server.engine_client.launch import launch_engine
from server.lifecycle import serve

async def launch(command):
    return await launch_engine((sys.executable, "-c", "import time; time.sleep(1000)"))

serve.launch_engine = launch
main()
"""

SOFT_LIMIT = 256
LIMIT_AT_LAUNCH = f"""
import resource
from server.cli.main import main
from server.lifecycle import serve

async def refuse(command):
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
    raise BlockingIOError(11, "no more processes")

serve.launch_engine = refuse
resource.setrlimit(resource.RLIMIT_NOFILE, ({SOFT_LIMIT}, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
main()
"""


def run(*flags: str) -> tuple[str, str, int]:
    """Run `smoe serve` on a system that starts no process; return its output, its error and its exit code."""
    return run_script(REFUSED_LAUNCH, *flags)


def run_script(script: str, *flags: str) -> tuple[str, str, int]:
    """Run `smoe serve` in a script; return its output, its error and its exit code. Waits until its processes have
    closed the output, too."""
    command = [sys.executable, "-c", script, "serve", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    return result.stdout.strip(), result.stderr, result.returncode


def test_the_engine_is_launched_before_the_server_is_imported_and_a_refusal_is_one_line() -> None:
    output, error, code = run("--port", "0")
    assert (output, code) == ("launched False", 1)
    assert error == "smoe: cannot start a process: no more processes\n"


@pytest.mark.parametrize("flags", [("--threads", "no"), ("/nowhere",)])
def test_mistakes_of_the_command_line_are_found_before_a_launch(flags: tuple[str, ...]) -> None:
    output, error, code = run(*flags)
    assert (output, error.count("\n"), code) == ("", 1, 2)


def test_a_port_in_use_is_found_before_a_launch() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        output, error, code = run("--port", str(taken.getsockname()[1]))
    assert (output, error.count("\n"), code) == ("", 1, 2)


def test_an_engine_that_nothing_adopts_is_killed_when_the_start_fails() -> None:
    _, error, code = run_script(STUBBORN_ENGINE, "--port", "0", "--batch-dir", "/proc/nowhere")
    assert (error.count("\n"), code) == (1, 2)


def test_the_first_engine_gets_the_raised_limit_of_open_files() -> None:
    output, _, _ = run_script(LIMIT_AT_LAUNCH, "--port", "0")
    soft, hard = map(int, output.split())
    assert soft > SOFT_LIMIT or soft == hard


def test_the_program_that_cannot_be_started_is_named() -> None:
    refused = PermissionError(errno.EACCES, "Permission denied", "/opt/python")
    assert process_error(refused) == "cannot start /opt/python: Permission denied"
    assert process_error(OSError(errno.EAGAIN, "no more")) == "cannot start a process: no more"
