"""Run pytest in two processes at once: for tests that need a process of their own and compute on one core."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from tests.support.paths import ROOT

PARTS = ("1/2", "2/2")


def run_parts(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run the tests that `arguments` select, half of them in each process. Raises AssertionError unless all pass."""
    with ExitStack() as stack:
        runs = [stack.enter_context(_start([*arguments, "--part", part], environment)) for part in PARTS]
        reports = [run.communicate()[0] for run in runs]
    for run, report in zip(runs, reports, strict=True):
        assert run.returncode == 0, report[-20_000:]
        assert " passed" in report or "[100%]" in report, report[-20_000:]


def _start(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
