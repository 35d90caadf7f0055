"""Memory in huge pages: aligned, zeroed, of the given size, and an error if there is not enough."""

import pytest
import torch

from model.ops.huge_pages import HUGE_PAGE_BYTES, empty, zeros


@pytest.mark.parametrize("num_elements", [0, 1, 1000, HUGE_PAGE_BYTES // 4 - 1, HUGE_PAGE_BYTES // 4, 3_000_001])
def test_vectors_have_their_size_and_alignment(num_elements: int) -> None:
    for make in (empty, zeros):
        vector = make(num_elements, torch.float32)
        assert vector.shape == (num_elements,) and vector.dtype == torch.float32
        alignment = HUGE_PAGE_BYTES if vector.nbytes >= HUGE_PAGE_BYTES else 64
        assert num_elements == 0 or vector.data_ptr() % alignment == 0
    assert not zeros(num_elements, torch.float32).any()


def test_vectors_are_written_independently() -> None:
    first, second = (zeros(HUGE_PAGE_BYTES, torch.uint8) for _ in range(2))
    first.fill_(7)
    assert not second.any() and int(first.min()) == 7


def test_too_little_memory_is_a_memory_error_that_says_how_much() -> None:
    with pytest.raises(MemoryError, match=f"cannot allocate {1 << 60} bytes"):
        empty(1 << 60, torch.int8)
