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
from server.lifecycle.restart.keeper import ORDERS, become_keeper, become_subreaper, hold_signals
become_subreaper()
hold_signals()
os.posix_spawn(sys.executable, [sys.executable, "-c", sys.argv[1]], os.environ, setsigmask=ORDERS.values())
become_keeper(*map(int, sys.argv[2:]))
"""
IMPORTS = "import os, signal, sys\n"
ENDS = """
def on_signal(signum, frame):
    print("got", signum, flush=True)
    os._exit(CODE)
"""
DRAINS = """
known = set()
def on_signal(signum, frame):
    if signum not in known:
        os.write(1, f"got {signum}\\n".encode())
    known.add(signum)
    if len(known) == 2:
        os._exit(0)
"""
WAITS = """
for signum in (signal.SIGHUP, *range(signal.SIGRTMIN, signal.SIGRTMIN + 4)):
    signal.signal(signum, on_signal)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""
SERVES = ENDS + WAITS


@contextlib.contextmanager
def kept(script: str, *order: int) -> Iterator["subprocess.Popen[str]"]:
    """Start a keeper whose server is a program, in a process group of its own."""
    command = [sys.executable, "-c", AS_SERVER, IMPORTS + script, *map(str, order)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
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


def test_a_hangup_is_passed_on() -> None:
    with kept(SERVES.replace("CODE", "5")) as process:
        assert read_line(process) == "ready"
        process.send_signal(signal.SIGHUP)
        assert read_line(process) == f"got {signal.SIGHUP.value}"
        assert process.wait(60) == 5


@pytest.mark.parametrize("signum", keeper.STOPS)
def test_each_stop_is_passed_on_as_an_order_and_the_second_one_as_an_urgent_one(signum: signal.Signals) -> None:
    with kept(DRAINS + WAITS) as process:
        assert read_line(process) == "ready"
        for is_urgent in (False, True):
            process.send_signal(signum)
            assert read_line(process) == f"got {keeper.stop_order(signum, is_urgent=is_urgent)}"
        assert process.wait(60) == 0


def test_a_later_generation_becomes_a_child_and_is_waited_for() -> None:
    """The first server starts a second one and ends, as after a hand-over."""
    with kept(f"if os.fork(): os._exit(0)\n{SERVES.replace('CODE', '6')}") as process:
        assert read_line(process) == "ready"
        process.send_signal(signal.SIGTERM)
        assert read_line(process).startswith("got")
        assert process.wait(60) == 6


@pytest.mark.parametrize("is_before", [True, False], ids=["before the keeper", "to the keeper"])
def test_a_later_generation_hears_of_the_stop_that_the_one_before_it_did_not_pass_on(*, is_before: bool) -> None:
    """The second server ends when its starter has been told, who ends without a word to it."""
    told = keeper.stop_order(signal.SIGTERM, is_urgent=False)
    deaf = f"""
first = os.getpid()
if os.fork():
    signal.sigwait([{told}])
    os.kill(os.getpid(), signal.SIGKILL)
while signal.sigtimedwait([{told}], 0.01) is None:
    continue
print("told", os.getppid() != first, flush=True)
os._exit(3)
"""
    with kept("os.write(1, b'ready\\n')\n" + deaf, *[told] * is_before) as process:
        assert read_line(process) == "ready"
        if not is_before:
            process.terminate()
        assert read_line(process) == "told True"
        assert process.wait(60) == 3


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
