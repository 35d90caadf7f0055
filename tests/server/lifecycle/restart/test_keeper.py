"""server/lifecycle/restart/keeper.py as a process: signals, exit codes, generations, orphans."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.lifecycle.restart import keeper

# Starts the keeper as a server does: with its successor as a child, here another Python program.
AS_SERVER = """
import os, sys
from server.lifecycle.restart.keeper import become_keeper, become_subreaper, hold_signals
become_subreaper()
hold_signals()
os.posix_spawn(sys.executable, [sys.executable, "-c", sys.argv[1]], os.environ, setsigmask=[])
become_keeper()
"""
IMPORTS = "import os, signal, sys\n"
SERVES = """
def end(signum, frame):
    print("got", signum, flush=True)
    os._exit(CODE)
for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(signum, end)
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""


@contextlib.contextmanager
def kept(script: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a keeper whose server is a program, in a process group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", AS_SERVER, IMPORTS + script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("script", "code"), [("sys.exit(0)", 0), ("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 137)]
)
def test_the_exit_code_is_the_servers(script: str, code: int) -> None:
    with kept(script) as process:
        assert process.wait(60) == code


@pytest.mark.parametrize("signum", keeper.PASSED_ON)
def test_each_signal_is_passed_on(signum: signal.Signals) -> None:
    with kept(SERVES.replace("CODE", "5")) as process:
        assert read_line(process) == "ready"
        process.send_signal(signum)
        assert read_line(process) == f"got {signum.value}"
        assert process.wait(60) == 5


def test_a_later_generation_becomes_a_child_and_is_waited_for() -> None:
    """The first server starts a second one and ends, as after a hand-over."""
    with kept(f"if os.fork(): os._exit(0)\n{SERVES.replace('CODE', '6')}") as process:
        assert read_line(process) == "ready"
        process.send_signal(signal.SIGTERM)
        assert read_line(process).startswith("got")
        assert process.wait(60) == 6


def test_orphans_of_other_groups_are_reaped_and_do_not_decide_the_exit_code() -> None:
    """As an engine whose server was killed."""
    orphan = """
if not os.fork():
    if not os.fork():
        os.setsid()
        os.write(1, f"{os.getpid()}\\n".encode())  # one write, so that lines of two processes never mix
    os._exit(9)
os.wait()
"""
    with kept(orphan + SERVES.replace("CODE", "4")) as process:
        (pid,) = {read_line(process), read_line(process)} - {"ready"}
        while Path(f"/proc/{pid}").exists():  # a zombie would stay
            continue
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 4
