"""Record the kernel launches of the Triton backend, and compile them as Triton would at their first launch; no GPU.

The backend computes on torch's meta device, which has shapes but no numbers. The recorder asks Triton itself how it
specializes the arguments of each launch: one variant is one compilation.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from model.ops.triton.kernel_variants import KernelVariant, VariantRecorder
from model.ops.triton.launch import launcher_for, options_of
from tests.triton_compiled.machine_code import Kernel


class FakeDriver:
    """Triton's driver of a GPU that does not exist; its device number is its architecture."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> int:
        return self._arch

    def get_current_stream(self, device: int) -> int:
        return 0


class LaunchRecorder(VariantRecorder):
    """Recorder of launches on a GPU that does not exist."""

    def __init__(self, arch: int = 90) -> None:
        super().__init__(options_of(launcher_for(arch)))
        self._arch = arch

    def record(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> object:
        triton.runtime.driver.set_active(FakeDriver(self._arch))
        return super().record(kernel, grid, *arguments, **options)


def compile_for(variant: KernelVariant, arch: int) -> Kernel:
    """Compile a variant with Triton's own compiler and assembler."""
    triton.runtime.driver.set_active(FakeDriver(arch))
    compiled = variant.compile()
    return Kernel(compiled.asm["cubin"], compiled.metadata.shared)


def kernels_of(module: Any) -> Iterator[str]:
    """Yield the names of a module's own kernels: jitted functions that are launched, not called by others."""
    for name, value in vars(module).items():
        if isinstance(value, triton.JITFunction) and name.endswith("_kernel") and value.__module__ == module.__name__:
            yield name


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """Return a meta tensor."""
    return torch.empty(*shape, dtype=dtype, device="meta")
