"""Record the kernel launches of the Triton backend and compile them, without a GPU.

The backend computes on torch's meta device, which has shapes but no numbers. The recording launcher keeps every kernel
with the types of its arguments, specialized as Triton does. Each kernel is then compiled to machine code.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": shared memory per thread block
MAX_SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}


@dataclass(frozen=True)
class Launched:
    """One kernel launch."""

    kernel: Any
    signature: dict[str, str]  # argument -> "*bf16", "i32", "constexpr"
    constants: dict[str, Any]
    divisible: tuple[int, ...]  # arguments known to be multiples of 16
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    def __str__(self) -> str:
        return f"{self.name} {self.constants} {self.signature} {self.num_warps} warps, {self.num_stages} stages"


class LaunchRecorder:
    """A model.ops.triton.launch.Launch that only records.

    Launches that differ only in the divisibility of their sizes are kept once.
    """

    def __init__(self) -> None:
        self.launched: dict[object, Launched] = {}

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        num_warps, num_stages = options.pop("num_warps"), options.pop("num_stages")
        named = dict(zip(kernel.arg_names, arguments, strict=False))
        types = {name: _type(value) for name, value in named.items()}
        ones = {name: value for name, value in named.items() if isinstance(value, int) and value == 1}
        constants = {**ones, **options}
        divisible = tuple(index for index, value in enumerate(arguments) if _is_multiple_of_16(value))
        signature = types | dict.fromkeys(constants, "constexpr")
        assert list(signature) == kernel.arg_names, (
            f"{kernel.__name__} is launched with arguments that it does not have"
        )
        key = kernel, tuple(types.items()), tuple(options.items()), num_warps, num_stages
        self.launched.setdefault(key, Launched(kernel, signature, constants, divisible, num_warps, num_stages))


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    assert isinstance(value, int)
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _is_multiple_of_16(value: Any) -> bool:
    """Check the divisibility that Triton specializes for. Allocated tensors are aligned to more than 16 bytes."""
    return isinstance(value, Tensor) or (isinstance(value, int) and value != 1 and value % 16 == 0)


@dataclass(frozen=True)
class Compiled:
    """Resources of one kernel on one architecture, as the assembler reports them."""

    registers: int
    spill_bytes: int
    shared_bytes: int


def compile_for(launched: Launched, arch: int) -> Compiled:
    """Compile to machine code with Triton's own compiler and assembler."""
    source = ASTSource(
        launched.kernel,
        signature=launched.signature,
        constexprs=launched.constants,
        attrs={(index,): [["tt.divisibility", 16]] for index in launched.divisible},
    )
    options = {"num_warps": launched.num_warps, "num_stages": launched.num_stages, "enable_fp_fusion": False}
    triton.knobs.nvidia.dump_ptxas_log = True
    with contextlib.redirect_stdout(io.StringIO()) as log:
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spilled = _resources(log.getvalue(), arch)
    return Compiled(registers, spilled, compiled.metadata.shared)


def _resources(assembler_log: str, arch: int) -> tuple[int, int]:
    """Return registers per thread and spilled bytes, as ptxas reports them."""
    assert re.search(rf"Compiling entry function '\w+' for 'sm_{arch}a?'", assembler_log), assembler_log
    [registers] = re.findall(r"Used (\d+) registers", assembler_log)
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill", assembler_log)]
    assert spills, assembler_log
    return int(registers), sum(spills)


def kernels_of(module: Any) -> Iterator[str]:
    """Yield the names of a module's own kernels: jitted functions that are launched, not called by others."""
    for name, value in vars(module).items():
        if isinstance(value, triton.JITFunction) and name.endswith("_kernel") and value.__module__ == module.__name__:
            yield name
