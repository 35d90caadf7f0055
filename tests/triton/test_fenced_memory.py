"""The fences of the kernel tests notice wrong reads and writes."""

from contextlib import nullcontext

import pytest
import torch
import triton
import triton.language as tl

from tests.support.kernels.fenced_memory import FencedMemory


@triton.jit
def shift_kernel(x: tl.tensor, y: tl.tensor, offset: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Write y[i] = x[i + offset] for BLOCK numbers."""
    index = tl.arange(0, BLOCK)
    tl.store(y + index, tl.load(x + index + offset))


@triton.jit
def shift_some_kernel(x: tl.tensor, y: tl.tensor, offset: tl.tensor, end: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Write y[i] = x[i + offset] for the numbers whose index in both is below `end`."""
    index = tl.arange(0, BLOCK)
    mask = index + offset < end
    tl.store(y + index, tl.load(x + index + offset, mask=mask, other=0.0), mask=mask)


def test_reads_beyond_a_tensor_and_unwritten_outputs_are_nan() -> None:
    with FencedMemory():  # inside the fences of all tests, which check no access to these
        x, y = torch.ones(8), torch.empty(12)
        shift_kernel[1,](x, y, 2, BLOCK=8)
    assert y[:6].tolist() == [1.0] * 6 and bool(y[6:].isnan().all())


@pytest.mark.parametrize("offset", [1, -1])
def test_a_read_beyond_a_tensor_is_an_error_under_the_interpreter_and_nan_on_a_gpu(
    device: torch.device, offset: int
) -> None:
    x, y = torch.ones(8), torch.empty(8)
    with pytest.raises(Exception, match="beyond a tensor") if device.type == "cpu" else nullcontext():
        shift_kernel[1,](x, y, offset, BLOCK=8)
    assert bool(y.isnan().any())


def test_addresses_that_a_mask_excludes_may_lie_anywhere() -> None:
    x, y = torch.ones(8), torch.empty(8)
    shift_some_kernel[1,](x, y, 3, 8, BLOCK=8)
    assert y[:5].tolist() == [1.0] * 5 and bool(y[5:].isnan().all())


def test_an_access_is_in_one_tensor() -> None:
    """From the first element to the last: the fences, another tensor and memory without fences are beyond it."""
    with FencedMemory() as memory:
        x, y = torch.empty(4), torch.empty(4)
    first, last = x.data_ptr(), x.data_ptr() + 3 * 4
    memory.check_access(first, last)
    memory.check_access(1, 2)  # tensors that have no fences are not checked
    for lowest, highest in ((first - 4, last), (first, last + 4), (first, y.data_ptr()), (1, last)):
        with pytest.raises(AssertionError, match="beyond a tensor"):
            memory.check_access(min(lowest, highest), max(lowest, highest))


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
