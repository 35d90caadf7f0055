"""Launch Triton kernels.

Every op takes its launcher as an argument, so that a test can record the launches and compile them without a GPU.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import triton

Launch: TypeAlias = Callable[..., None]  # launch(kernel, grid, *arguments, num_warps=, num_stages=, **constants)


def launch_on_device(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch a kernel unless the grid is empty. Multiply-adds are not fused, so that equal expressions round alike."""
    if all(grid):
        kernel[grid](*arguments, **options, enable_fp_fusion=False)


def blocks(size: int, block: int) -> int:
    """Return the number of blocks that cover `size`: 17 in blocks of 16 is 2."""
    return -(-size // block)


def power_of_two(size: int, least: int = 1) -> int:
    """Return the next power of two, which Triton requires for tile sizes: 48 -> 64."""
    return max(least, int(triton.next_power_of_2(size)))
