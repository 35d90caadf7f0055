"""Tests of the Triton kernels, in a separate process, because Triton selects its interpreter when it is imported."""

import os
import subprocess
import sys

from tests.support.paths import ROOT


def test_every_triton_kernel_equals_the_reference_under_the_interpreter(scale: int) -> None:
    """Run tests/triton; its failures are in the output."""
    command = [sys.executable, "-m", "pytest", "tests/triton", "-p", "no:cacheprovider", "--scale", str(scale)]
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-5000:]
