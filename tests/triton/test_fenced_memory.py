"""The fences of the kernel tests notice wrong reads and writes."""

import pytest
import torch
import triton
import triton.language as tl

from tests.support.fenced_memory import FencedMemory


@triton.jit
def shift_kernel(x: tl.tensor, y: tl.tensor, offset: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Write y[i] = x[i + offset] for BLOCK numbers."""
    index = tl.arange(0, BLOCK)
    tl.store(y + index, tl.load(x + index + offset))


def test_reads_beyond_a_tensor_and_unwritten_outputs_are_nan() -> None:
    x, y = torch.ones(8), torch.empty(12)
    shift_kernel[1,](x, y, 2, BLOCK=8)
    assert y[:6].tolist() == [1.0] * 6 and bool(y[6:].isnan().all())


@pytest.mark.parametrize("start", [1, -1])
def test_a_write_beyond_a_tensor_fails_the_test(start: int) -> None:
    with FencedMemory() as memory:
        x, y = torch.ones(16), torch.empty(8)
        shift_kernel[1,](x, y, 0, BLOCK=8)
        memory.check()
        shift_kernel[1,](x, torch.as_strided(y, (8,), (1,), y.storage_offset() + start), 0, BLOCK=8)
    with pytest.raises(AssertionError, match="wrote before" if start < 0 else "wrote behind"):
        memory.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_values_stay_as_they_are(dtype: torch.dtype) -> None:
    assert torch.arange(5, dtype=dtype).tolist() == [0, 1, 2, 3, 4]
    assert torch.zeros(2, 3, dtype=dtype).shape == (2, 3)
    assert bool(torch.empty(4, dtype=dtype).isnan().all()) and torch.empty(2, dtype=torch.int32).tolist() == [0, 0]
