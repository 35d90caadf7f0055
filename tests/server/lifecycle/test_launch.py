"""server/lifecycle/serve.py: what has happened when the engine is launched."""

import socket
import subprocess
import sys

import pytest

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


def run(*flags: str) -> tuple[str, str, int]:
    """Run `smoe serve` on a system that starts no process; return its output, its error and its exit code."""
    command = [sys.executable, "-c", REFUSED_LAUNCH, "serve", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
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
