"""Fixtures of all kernel tests: the device, one thread, a seed, and memory with fences.

The kernels run under Triton's interpreter on the CPU (TRITON_INTERPRET=1, as in CI), or on a GPU:
`TRITON_INTERPRET=0 pytest tests/triton`. The device is torch's default one, on which tests and helpers create tensors.
"""

from collections.abc import Iterator

import pytest
import torch
import triton

from tests.support.fenced_memory import FencedMemory


@pytest.fixture(autouse=True)
def device() -> Iterator[torch.device]:
    """Make the device torch's default one for a test."""
    torch.set_num_threads(1)
    device = torch.device("cpu" if triton.knobs.runtime.interpret else "cuda")
    torch.set_default_device(device)
    torch.manual_seed(0)
    yield device
    torch.set_default_device(None)


@pytest.fixture(autouse=True)
def fenced_memory(device: torch.device) -> Iterator[FencedMemory]:
    """Let reads beyond a tensor and outputs that are not written show as NaN; fail after writes beyond a tensor."""
    with FencedMemory() as memory:
        yield memory
    memory.check()
