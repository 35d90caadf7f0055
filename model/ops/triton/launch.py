"""Launch Triton kernels.

Every op takes its launcher as an argument, so that a test can record the launches and compile them without a GPU.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# mypy: disable-error-code="untyped-decorator"

Launch: TypeAlias = Callable[..., None]  # launch(kernel, grid, *arguments, num_warps=, num_stages=, **constants)

HOPPER = 90  # compute capability 9.0, times 10
# Options of every launch. Multiply-adds are not fused, so that equal expressions round alike.
PLAIN_OPTIONS: Mapping[str, Any] = MappingProxyType({"enable_fp_fusion": False})
EARLY_OPTIONS: Mapping[str, Any] = MappingProxyType({**PLAIN_OPTIONS, "EARLY": True, "launch_pdl": True})


def launch_on_device(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch a kernel unless the grid is empty. It starts when the one before it has ended."""
    if all(grid):
        kernel[grid](*arguments, **options, **PLAIN_OPTIONS)


def launch_early(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch a kernel unless the grid is empty. Its programs start while those of the kernel before it end, and wait
    for its results in `wait_for_inputs` (programmatic dependent launch, CUDA C++ Programming Guide)."""
    if all(grid):
        kernel[grid](*arguments, **options, **EARLY_OPTIONS)


def launcher_for(arch: int, early: bool = True) -> Launch:
    """Return the launcher for a GPU. `arch`: compute capability times 10; from 90 on launches may be early."""
    return launch_early if early and arch >= HOPPER else launch_on_device


def options_of(launch: Launch) -> Mapping[str, Any]:
    """Return the options that a launcher adds."""
    return EARLY_OPTIONS if launch is launch_early else PLAIN_OPTIONS


@triton.jit
def wait_for_inputs(EARLY: tl.constexpr) -> None:
    """Wait for the kernel before, and let the next one start: the first statement of every kernel.

    Before it a kernel may neither read nor write memory. Because every kernel waits for the one before it, at most two
    run at once, and all earlier ones have ended. EARLY False: the launch has waited already.
    """
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


def blocks(size: int, block: int) -> int:
    """Return the number of blocks that cover `size`: 17 in blocks of 16 is 2."""
    return -(-size // block)


def power_of_two(size: int, least: int = 1) -> int:
    """Return the next power of two, which Triton requires for tile sizes: 48 -> 64."""
    return max(least, int(triton.next_power_of_2(size)))
