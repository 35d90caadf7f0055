"""Fixture of all kernel tests: one thread, a seed, and a check that the interpreter runs."""

import pytest
import torch
import triton


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    assert triton.knobs.runtime.interpret, "these tests need TRITON_INTERPRET=1 before triton is imported"
