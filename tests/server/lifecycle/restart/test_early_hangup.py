"""server/lifecycle/restart/early_hangup.py: SIGHUP between the start of the command and its event loop."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

NOTE = """
import os, signal, sys
from server.lifecycle.restart.early_hangup import EarlyHangup
hangup = EarlyHangup()
"""
HANG_UP = "os.kill(os.getpid(), signal.SIGHUP)\n"
REPORT = "hangup.pass_on(lambda: print('handled'))\n"
TAKE_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"


def run(script: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT, start_new_session=True
    )


@pytest.mark.parametrize(
    ("script", "output"),
    [
        (NOTE + HANG_UP + REPORT, "handled\n"),
        (NOTE + HANG_UP + HANG_UP + REPORT, "handled\n"),
        (NOTE + REPORT, ""),
        ("import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + NOTE + HANG_UP + REPORT, ""),
    ],
    ids=["once", "twice", "never", "under nohup"],
)
def test_the_handler_of_the_event_loop_is_called_once_for_signals_before_it(script: str, output: str) -> None:
    ran = run(script)
    assert (ran.returncode, ran.stdout) == (0, output)


def test_the_command_takes_the_signal_before_it_reads_its_settings() -> None:
    ran = run(
        "import os, signal\n"
        "from server.cli import serve\n"
        "def load_settings(*_):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    raise serve.SettingsError('reached')\n"
        "serve.load_settings = load_settings\n"
        "raise SystemExit(serve.run({}, None, 0.0))"
    )
    assert ran.returncode == 2 and "reached" in ran.stderr


def test_a_terminal_closed_before_the_event_loop_ends_the_process() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE_TERMINAL + NOTE + "print('ready', flush=True)\nwhile True: signal.pause()"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        os.close(ours)
        assert process.wait(60) == -signal.SIGHUP
    finally:
        process.kill()
        process.communicate()
