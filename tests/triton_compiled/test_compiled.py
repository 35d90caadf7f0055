"""Every kernel compiles for A100 and H100 as the backend launches it for Mixtral-8x7B, to good machine code; no GPU."""

import importlib
import multiprocessing
import os
import pkgutil
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import pytest

import model.ops.triton
from model.ops.triton.kernel_variants import KernelVariant
from tests.triton_compiled.layer import served_variants
from tests.triton_compiled.machine_code import Kernel, MachineCode, read_machine_code
from tests.triton_compiled.recording import compile_for, kernels_of

# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": shared memory per thread block
MAX_SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
ARCHS = (80, 90)
PRODUCT_KERNELS = ("gate_up_kernel", "down_kernel", "linear_kernel")
MAX_INSTRUCTIONS_PER_WEIGHT = {"fp8": 4.4, "int8": 4.0}  # of the inner loop, per thread

pytestmark = pytest.mark.usefixtures("kept_kernels")


def _compiled(text: str, arch: int) -> MachineCode:
    return _all_compiled()[text, arch]


@cache
def _all_compiled() -> dict[tuple[str, int], MachineCode]:
    """Compile each variant for each architecture, on up to four cores, and disassemble all at once."""
    pairs = [(text, arch) for arch in ARCHS for text in served_variants(arch)]  # known to the forked processes
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1), multiprocessing.get_context("fork")) as processes:
        kernels = dict(zip(pairs, processes.map(_compile, pairs), strict=True))
    found = {}
    for arch in ARCHS:
        of_arch = {pair: kernel for pair, kernel in kernels.items() if pair[1] == arch}
        found |= dict(zip(of_arch, read_machine_code(list(of_arch.values()), arch), strict=True))
    return found


def _compile(pair: tuple[str, int]) -> Kernel:
    text, arch = pair
    return compile_for(served_variants(arch)[text], arch)


def _products(weight_format: str) -> dict[str, KernelVariant]:
    """Return the matrix kernels in bfloat16 with these weights."""
    return {
        text: launched
        for text, launched in served_variants(90).items()
        if launched.name in PRODUCT_KERNELS and launched.options["FORMAT"] == weight_format
        if "float32" not in str(launched.arguments[0].dtype)
    }


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_compiles_without_spills_and_within_shared_memory(arch: int) -> None:
    for text in served_variants(arch):
        code = _compiled(text, arch)
        assert code.spills == 0, f"{text} spills registers"
        assert code.shared_bytes <= MAX_SHARED_BYTES[arch], f"{text} needs {code.shared_bytes} bytes"


@pytest.mark.parametrize("weight_format", ["plain", "int8", "fp8"])
def test_matrix_kernels_use_hoppers_products_and_copies_of_16_bytes(weight_format: str) -> None:
    products = _products(weight_format)
    assert len(products) >= 8
    for text in products:
        code = _compiled(text, 90)
        assert code.count("HGMMA") >= 4 and code.count("HMMA") == 0, text
        assert code.count("LDGSTS") == code.count("LDGSTS.E.BYPASS.128") + code.count("LDGSTS.E.128") > 0, text
        assert code.count("LDG.") == 0, text  # all of the loop's loads are pipelined


@pytest.mark.parametrize("weight_format", ["int8", "fp8"])
def test_8_bit_weights_cost_few_instructions(weight_format: str) -> None:
    for text, launched in _products(weight_format).items():
        per_thread = launched.options["OUTPUTS"] * launched.options["INPUTS"] / (32 * launched.options["num_warps"])
        instructions = len(_compiled(text, 90).loop) / per_thread
        assert instructions <= MAX_INSTRUCTIONS_PER_WEIGHT[weight_format], f"{instructions:.2f}: {text}"


def test_attention_uses_tensor_cores_and_copies_of_16_bytes() -> None:
    kernels = {
        text: launched
        for text, launched in served_variants(90).items()
        if launched.name in ("decode_kernel", "chunk_kernel") and "float32" not in str(launched.arguments[0].dtype)
    }
    assert len(kernels) >= 6
    for text, launched in kernels.items():
        code = _compiled(text, 90)
        assert code.count("HMMA") + code.count("HGMMA") >= 8, text
        is_plain = launched.options["ROW"] == launched.options["HEAD_DIM"]
        assert code.count("LDGSTS.E.BYPASS.128") >= (4 if is_plain else 0), text


MEMORY = ("LDG", "STG", "LDGSTS", "LD.", "ST.", "ATOM", "RED", "UTMA", "UBLK")  # reads and writes of the GPU's memory


def test_on_hopper_a_kernel_waits_for_the_one_before_it_before_it_uses_memory() -> None:
    """ACQBULK waits for the kernel before and PREEXIT lets the next one start; no branch goes around them."""
    for text in served_variants(90):
        instructions = _compiled(text, 90).instructions
        waits = [index for index, name in enumerate(instructions) if name.startswith("ACQBULK")]
        signals = [index for index, name in enumerate(instructions) if name.startswith("PREEXIT")]
        assert len(waits) == len(signals) == 1 and waits < signals, text
        before = instructions[: waits[0]]
        assert not [name for name in before if name.startswith((*MEMORY, "BRA", "EXIT"))], text


def test_before_hopper_no_kernel_waits_by_itself() -> None:
    for text in served_variants(80):
        assert not [name for name in _compiled(text, 80).instructions if name.startswith(("ACQBULK", "PREEXIT"))], text


def test_no_kernel_is_left_out() -> None:
    modules = [module.name for module in pkgutil.walk_packages(model.ops.triton.__path__, "model.ops.triton.")]
    kernels = {name for module in modules for name in kernels_of(importlib.import_module(module))}
    assert len(kernels) >= 9
    assert {launched.name for launched in served_variants(90).values()} == kernels
