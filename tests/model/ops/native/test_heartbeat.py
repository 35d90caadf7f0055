"""The heartbeat counter advances with each task of a kernel, and results do not change."""

from ctypes import c_uint64

import pytest
import torch

from model.ops.native.library import NativeLibrary
from model.ops.native.ops import NativeOps


@pytest.mark.parametrize("threads", [1, 2])
def test_a_kernel_advances_the_counter_while_it_works(threads: int) -> None:
    ops = NativeOps(NativeLibrary(), threads)
    counter = c_uint64(2**64 - 1)  # the next value is 0
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 64, generator=generator) for rows in (8, 2000))
    packed = ops.pack_linear(weight)
    silent = ops.linear(x, packed)
    assert counter.value == 2**64 - 1
    ops.set_heartbeat(counter)
    counts = []
    for _ in range(20):
        assert torch.equal(ops.linear(x, packed), silent)
        counts.append(counter.value)
    assert counts == sorted(set(counts)) if threads == 1 else counts[-1] > counts[0]
