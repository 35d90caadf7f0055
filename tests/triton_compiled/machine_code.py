"""Read a compiled kernel: its resources, and the instructions of its inner loop."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
LABEL = re.compile(r"\s*\.(L_x_\d+):")
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S.*?)\s*;")
JUMP = re.compile(r"BRA\b.*`\(\.(L_x_\d+)\)")
PRODUCTS = ("HGMMA", "HMMA")  # on Hopper, before


@dataclass(frozen=True)
class MachineCode:
    """One kernel on one architecture."""

    registers: int
    spills: int  # instructions that move registers to local memory or back
    shared_bytes: int
    instructions: tuple[str, ...]
    loops: tuple[tuple[str, ...], ...]  # the innermost ones

    @property
    def loop(self) -> tuple[str, ...]:
        """The shortest innermost loop with matrix products, empty without one."""
        with_products = [body for body in self.loops if any(text.startswith(PRODUCTS) for text in body)]
        return min(with_products, key=len, default=())

    def count(self, prefix: str, in_loop: bool = True) -> int:
        """Count instructions whose text begins with `prefix`, such as "LDGSTS.E.BYPASS.128"."""
        return sum(text.startswith(prefix) for text in (self.loop if in_loop else self.instructions))

    def opcodes(self) -> Counter[str]:
        """Count the loop's instructions by name without suffixes."""
        return Counter(re.split(r"[.\s]", text)[0] for text in self.loop)


def read_machine_code(cubin: bytes, shared_bytes: int) -> MachineCode:
    """Disassemble a kernel with the tools that come with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        text = _run("nvdisasm", "-c", file.name)
    [registers] = re.findall(r"REG:(\d+)", usage)
    instructions, labels = _parse(text)
    spills = sum(instruction.startswith(("STL", "LDL")) for instruction in instructions)
    return MachineCode(int(registers), spills, shared_bytes, tuple(instructions), tuple(_loops(instructions, labels)))


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def _parse(text: str) -> tuple[list[str], dict[str, int]]:
    """Return the instructions without predicates, and the index that each label marks."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := INSTRUCTION.match(line):
            instructions.append(instruction[1])
    return instructions, labels


def _loops(instructions: list[str], labels: dict[str, int]) -> list[tuple[str, ...]]:
    """Return the innermost loops: from a label to a jump back to it, without another such jump inside."""
    spans = []
    for index, text in enumerate(instructions):
        jump = JUMP.match(text)
        if jump and labels[jump[1]] < index:
            spans.append((labels[jump[1]], index))
    inner = [(a, b) for a, b in spans if not any(a <= c and d <= b and (c, d) != (a, b) for c, d in spans)]
    return [tuple(instructions[begin : end + 1]) for begin, end in inner]
