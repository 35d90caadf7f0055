"""How a Triton kernel is started, and what all kernels share.

Kernels are given their launcher, so that a test can record what would run on a card and compile it without one.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import triton

Launch: TypeAlias = Callable[..., None]  # launch(kernel, grid, *arguments, num_warps=, num_stages=, **constants)


def launch_on_device(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Products and sums are not fused, so that equal expressions round alike everywhere. An empty grid: no launch."""
    if all(grid):
        kernel[grid](*arguments, **options, enable_fp_fusion=False)


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`: 17 in blocks of 16 is 2."""
    return -(-size // block)


def power_of_two(size: int, least: int = 1) -> int:
    """The next power of two, which Triton wants of every tile: 48 -> 64."""
    return max(least, int(triton.next_power_of_2(size)))
