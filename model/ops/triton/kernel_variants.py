"""Record which variants of the kernels a network launches, and compile them in parallel threads.

A variant is what Triton compiles once: a kernel, its constants and options, and what its arguments are specialized on.
The network runs on torch's meta device, which has shapes but no numbers. Triton releases the interpreter's lock in its
passes, in LLVM and while ptxas runs.
"""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor


class KernelCompilationError(Exception):
    """A kernel does not compile. One line that names the variant and the error."""


class Address:
    """Stands for a tensor in a launch: its dtype, and an address as aligned as that of the real tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype: torch.dtype = tensor.dtype
        self._offset = int(tensor.storage_offset()) * tensor.element_size()  # storages are aligned to 512 bytes

    def data_ptr(self) -> int:
        return 512 + self._offset

    @staticmethod
    def ptr_range() -> int:
        return 1 << 40


@dataclass(frozen=True)
class KernelVariant:
    """One variant of a kernel, and the arguments of the first launch that needs it."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]  # constants, num_warps, num_stages, and those of the launcher

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    def __str__(self) -> str:
        return f"{self.name} {self.options}"

    def compile(self) -> Any:
        """Compile for the current device, without loading it there. A launch with equal arguments finds the result."""
        return self.kernel.warmup(*self.arguments, grid=(1,), **self.options)


class VariantRecorder:
    """A model.ops.triton.launch.Launch that only records variants, of launches with a launcher's options."""

    def __init__(self, launcher_options: Mapping[str, Any]) -> None:
        self._launcher_options = launcher_options
        self.variants: dict[object, KernelVariant] = {}
        self.num_launches = 0

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        self.record(kernel, grid, *arguments, **options)

    def record(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> object:
        """Record a launch and return the key of its variant."""
        addresses = tuple(Address(value) if isinstance(value, Tensor) else value for value in arguments)
        options = {**options, **self._launcher_options}
        *_, bind = kernel.device_caches[triton.runtime.driver.active.get_current_device()]
        _, specialization, _ = bind(*addresses, **options)
        key = kernel.__name__, str(specialization), str(sorted(options.items()))
        self.variants.setdefault(key, KernelVariant(kernel, addresses, options))
        self.num_launches += all(grid)
        return key


def compile_variants(
    variants: Collection[KernelVariant], num_threads: int, on_compiled: Callable[[int, int], None]
) -> None:
    """Compile variants and call on_compiled(done, total). Raises KernelCompilationError for the first that fails."""
    on_compiled(0, len(variants))
    with ThreadPoolExecutor(num_threads) as threads:
        waiting = {threads.submit(variant.compile): variant for variant in variants}
        for done, future in enumerate(as_completed(waiting), 1):
            if error := future.exception():
                threads.shutdown(cancel_futures=True)
                summary = str(error).strip().partition("\n")[0]
                raise KernelCompilationError(f"{waiting[future]}: {type(error).__name__}: {summary}") from error
            on_compiled(done, len(variants))
