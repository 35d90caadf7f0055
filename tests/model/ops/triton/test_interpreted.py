"""Tests of the Triton kernels, in separate processes, because Triton selects its interpreter when it is imported."""

import os

from tests.support.parallel_pytest import run_parts


def test_every_triton_kernel_equals_the_reference_under_the_interpreter(scale: int) -> None:
    """Run tests/triton; the failures are in the output."""
    run_parts(["tests/triton", "--scale", str(scale)], os.environ | {"TRITON_INTERPRET": "1"})
