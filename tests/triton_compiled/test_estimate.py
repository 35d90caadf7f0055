"""The estimate of decode steps: its aims hold for the kernels of today, and its arithmetic on made-up machine code."""

from types import SimpleNamespace

import pytest
import torch

from model.ops.triton.kernel_variants import KernelVariant
from tests.triton_compiled.decode_launches import Launch
from tests.triton_compiled.estimate import (
    COPY_BYTES_PER_S,
    RAMP_S,
    compiled_step,
    estimate_product,
    estimate_step,
    resident_programs,
)
from tests.triton_compiled.machine_code import MachineCode
from tests.triton_compiled.recording import empty

AIMS = {1: 0.76, 8: 0.84, 64: 0.78}  # shares of a copy's bandwidth, by rows

pytestmark = pytest.mark.usefixtures("kept_kernels")


@pytest.mark.parametrize("num_rows", AIMS)
def test_steps_in_fp8_reach_their_aims_by_arithmetic(num_rows: int) -> None:
    step, codes = compiled_step("fp8", num_rows)
    for context in (256, 1024):
        estimate, kernels = estimate_step(step, codes, context)
        assert estimate.share >= AIMS[num_rows]
        assert estimate.launches_per_layer <= 10
        assert estimate.sampler_s <= 60e-6
        assert len(kernels) == 5 and all(0 < kernel.share <= 1 for kernel in kernels)
        assert estimate.read_bytes / COPY_BYTES_PER_S < estimate.step_s


def _linear(num_outputs: int, num_splits: int) -> Launch:
    """A product of one row with `num_outputs` x 4096 weights of 8 bits, 64 outputs a program."""
    options = {"OUTPUTS": 64, "INPUTS": 256, "FORMAT": "fp8", "num_warps": 4, "num_stages": 4}
    kernel = SimpleNamespace(__name__="linear_kernel")
    tensors = [empty(1, dtype=torch.int32)] * 4
    arguments = (*tensors, 1, num_outputs, 4096, num_splits)
    return Launch("key", KernelVariant(kernel, arguments, options), (num_outputs // 64, num_splits), arguments)


def _code(instructions: int, registers: int = 64) -> MachineCode:
    loop = ("HGMMA", *["MOV"] * (instructions - 1))
    return MachineCode(registers, 0, 48 * 1024, loop, (loop,))


def test_a_kernel_is_as_fast_as_memory_or_as_the_issue_of_its_instructions() -> None:
    """A program's turn is 64 x 256 weights on 128 threads, 128 for each. 1,280 instructions are 10 for a weight."""
    launch = _linear(132 * 64, 2)
    num_bytes = 132 * 64 * 4096
    assert estimate_product(launch, _code(256), 1).seconds == pytest.approx(RAMP_S + num_bytes / COPY_BYTES_PER_S)
    assert estimate_product(launch, _code(256), 1).per_weight == 2
    slow = estimate_product(launch, _code(1280), 1)
    assert slow.seconds == pytest.approx(RAMP_S + num_bytes * 10 / (132 * 128 * 1.7e9))


def test_few_programs_use_few_multiprocessors() -> None:
    alone = estimate_product(_linear(64, 1), _code(1280), 1)
    assert alone.seconds == pytest.approx(RAMP_S + 64 * 4096 * 10 / (128 * 1.7e9))
    assert (alone.programs, alone.at_once) == (1, 1)


@pytest.mark.parametrize(("registers", "resident"), [(64, 4), (128, 4), (255, 2)])
def test_programs_of_a_multiprocessor_share_its_registers_and_memory(registers: int, resident: int) -> None:
    assert resident_programs(_linear(64, 1), _code(256, registers)) == resident
