"""Record the kernel launches of the Triton backend, and compile them as Triton would at their first launch; no GPU.

The backend computes on torch's meta device, which has shapes but no numbers. The recorder asks Triton itself how it
specializes the arguments of each launch: one variant is one compilation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from tests.triton_compiled.machine_code import MachineCode, read_machine_code


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


class Address:
    """Stands for a tensor in a launch: its dtype, and an address as aligned as that of the real tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype = tensor.dtype
        self._offset = tensor.storage_offset() * tensor.element_size()  # storages are aligned to 512 bytes

    def data_ptr(self) -> int:
        return 512 + self._offset

    @staticmethod
    def ptr_range() -> int:
        return 1 << 40


@dataclass(frozen=True)
class Launched:
    """One variant of a kernel: the first launch that needs it."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]  # constants, num_warps, num_stages

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    def __str__(self) -> str:
        return f"{self.name} {self.options}"


class LaunchRecorder:
    """A model.ops.triton.launch.Launch that only records variants."""

    def __init__(self, arch: int = 90) -> None:
        self._arch = arch
        self.variants: dict[object, Launched] = {}
        self.num_launches = 0

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        self.record(kernel, grid, *arguments, **options)

    def record(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> object:
        """Record a launch and return the key of its variant."""
        addresses = tuple(Address(value) if isinstance(value, Tensor) else value for value in arguments)
        triton.runtime.driver.set_active(FakeDriver(self._arch))
        *_, bind = kernel.device_caches[self._arch]
        _, specialization, _ = bind(*addresses, **options)
        key = kernel.__name__, str(specialization), str(sorted(options.items()))
        self.variants.setdefault(key, Launched(kernel, addresses, options))
        self.num_launches += all(grid)
        return key


def compile_for(launched: Launched, arch: int) -> MachineCode:
    """Compile a variant with Triton's own compiler and assembler."""
    triton.runtime.driver.set_active(FakeDriver(arch))
    compiled = launched.kernel.warmup(*launched.arguments, grid=(1,), **launched.options, enable_fp_fusion=False)
    return read_machine_code(compiled.asm["cubin"], compiled.metadata.shared)


def kernels_of(module: Any) -> Iterator[str]:
    """Yield the names of a module's own kernels: jitted functions that are launched, not called by others."""
    for name, value in vars(module).items():
        if isinstance(value, triton.JITFunction) and name.endswith("_kernel") and value.__module__ == module.__name__:
            yield name


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """Return a meta tensor."""
    return torch.empty(*shape, dtype=dtype, device="meta")
