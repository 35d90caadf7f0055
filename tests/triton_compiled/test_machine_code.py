"""Kernels that are disassembled together have the instructions and loops that nvdisasm shows of one alone."""

import re

import pytest

from tests.triton_compiled.layer import served_variants
from tests.triton_compiled.machine_code import INSTRUCTION, Kernel, read_machine_code, run_tool
from tests.triton_compiled.recording import compile_for

LABEL = re.compile(r"\s*\.(L_x_\d+):")
TARGET = re.compile(r"`\((?:\.(L_x_\d+)|.*)\)|\b0x[0-9a-f]+$")  # of a jump or a call: a label, or a position

pytestmark = pytest.mark.usefixtures("kept_kernels")


def shown_alone(kernel: Kernel) -> tuple[list[str], set[tuple[str, ...]]]:
    """Return the instructions and all loops of one kernel, whose jumps name labels."""
    instructions, labels, loops = list[str](), dict[str, int](), set[tuple[str, ...]]()
    for line in run_tool("nvdisasm", kernel.cubin, "-c").splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := INSTRUCTION.match(line):
            target = TARGET.search(found[1])
            instructions.append(TARGET.sub("target", found[1]))
            if (
                found[1].startswith("BRA")
                and target
                and labels.get(target[1], len(instructions)) < len(instructions) - 1
            ):
                loops.add(tuple(instructions[labels[target[1]] :]))
    return instructions, loops


@pytest.mark.parametrize(("arch", "names"), [(80, ["chunk_kernel"]), (90, ["rms_norm_kernel", "decode_kernel"])])
def test_kernels_that_are_read_together_are_those_that_are_shown_alone(arch: int, names: list[str]) -> None:
    by_name = {variant.name: variant for variant in served_variants(arch).values()}
    kernels, num_loops = [compile_for(by_name[name], arch) for name in names], 0
    for kernel, code in zip(kernels, read_machine_code(kernels, arch), strict=True):
        instructions, loops = shown_alone(kernel)
        assert [TARGET.sub("target", text) for text in code.instructions] == instructions
        assert 0 < code.registers < 256
        innermost = {loop for loop in loops if not any(is_inside(other, loop) for other in loops - {loop})}
        assert {tuple(TARGET.sub("target", text) for text in loop) for loop in code.loops} == innermost
        num_loops += len(innermost)
    assert num_loops


def is_inside(part: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    return any(whole[start : start + len(part)] == part for start in range(len(whole) - len(part) + 1))
